"""Suite `masked_adamw`: one step over 1e8 masked float32 weights, over torch's fused AdamW.

The rival multiplies gradients and weights by a mask around torch's fused step. GB/s count what a
step must move at least: 28 bytes of a weight (weight, gradient and two moments read, all but the
gradient written), one bit more with a mask, 18 bytes more for the rival's multiplications; of
compact values only the kept ones. `compact_state` has dense weights and gradients, and moments of
the kept weights alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from bench import optimizer
from bench.gpu.ceilings import MASKING_BYTES, TINY_WEIGHTS, WEIGHTS
from bench.gpu.session import Case, Comparison, Measure, Session, Work

OPS = ("update_masked_adamw_", "mask_pack_bits")
DENSITIES = (0.5, 0.1)
COMPACT_STATE = "compact_state"


def cases(tiny: bool) -> Iterator[Case]:
    """One for each density."""
    for density in DENSITIES:
        yield Case(f"density {density}", _step(TINY_WEIGHTS if tiny else WEIGHTS, density))


def works(weights: int, density: float) -> dict[str, Work]:
    """What each contender's step must move."""
    plain = optimizer.OPTIMIZERS["adamw"][3] * weights
    return {
        optimizer.RIVAL: Work(bytes=plain + MASKING_BYTES * weights),
        optimizer.FUSED: Work(bytes=plain),
        optimizer.FUSED_AGAIN: Work(bytes=plain),
        optimizer.MASKED: Work(bytes=plain + weights / 8),
        COMPACT_STATE: Work(bytes=plain * density + weights / 8),
        optimizer.COMPACT: Work(bytes=plain * density),
        optimizer.COMPACT_TORCH: Work(bytes=plain * density),
    }


def _step(weights: int, density: float) -> Measure:
    def measure(session: Session) -> None:
        case = optimizer.Case("adamw", weights, density)
        fields = {"op": "adamw", "pass": "step", "shape": [weights], "pattern": "unstructured"}
        what = Comparison(
            {**fields, "density": density, "dtype": "float32"},
            works(weights, density),
            dense=optimizer.FUSED,
            rival=optimizer.RIVAL,
        )
        makers = optimizer.makers(case, session.device)
        makers[COMPACT_STATE] = lambda: compact_state(case, session.device)
        session.compare(what, makers)

    return measure


def compact_state(case: optimizer.Case, device: torch.device) -> Callable[[], None]:
    """A step of ours whose moments are those of the kept weights alone."""
    ours, _, options, _ = optimizer.OPTIMIZERS[case.optimizer]
    dense = optimizer.parameters(case.weights, device)
    masks = {each: torch.rand(each.shape, device=device) < case.density for each in dense}
    step: Callable[[], None] = ours(dense, masks=masks, state="compact", **options).step
    return step
