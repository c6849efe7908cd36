"""Suite `masked_adamw`: one step over 1e8 masked float32 weights, over torch's fused AdamW.

The rival multiplies gradients and weights by a mask around torch's fused step. GB/s count what a
step must move at least: 28 bytes of a weight (weight, gradient and two moments read, all but the
gradient written), one bit more with a mask, 18 bytes more for the rival's multiplications; of
compact values only the kept ones. Of eight weights (a sector) without a kept one, ours reads
nothing and writes zeros alone. `compact_state` has moments of the kept weights alone. `kernel` is
the op without the optimiser around it, `kernel_triton` the same by its Triton kernel where another
one is registered too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch

from bench import optimizer
from bench.gpu.ceilings import MASKING_BYTES, TINY_WEIGHTS, WEIGHTS
from bench.gpu.semi_structured import check
from bench.gpu.session import Case, Comparison, Measure, Session, Work
from sparsekern.ops import OPS as ALL_OPS
from sparsekern.ops import mask

OPS = ("update_masked_adamw_", "update_compact_adamw_", "mask_pack_bits")
DENSITIES = (0.5, 0.1)
SECTOR = 8  # float32 numbers that memory moves together
COMPACT_STATE, KERNEL, KERNEL_TRITON = "compact_state", "kernel", "kernel_triton"


def cases(tiny: bool) -> Iterator[Case]:
    """One for each density."""
    for density in DENSITIES:
        yield Case(f"density {density}", _step(TINY_WEIGHTS if tiny else WEIGHTS, density))


def works(weights: int, density: float) -> dict[str, Work]:
    """What each contender's step must move."""
    plain = optimizer.OPTIMIZERS["adamw"][3] * weights
    touched = 1 - (1 - density) ** SECTOR
    weights_and_grads = 8 * touched + 4  # masked weights are zeroed, so every weight is written
    ours = Work(bytes=weights * (16 * touched + weights_and_grads + 1 / 8))
    return {
        optimizer.RIVAL: Work(bytes=plain + MASKING_BYTES * weights),
        optimizer.FUSED: Work(bytes=plain),
        optimizer.FUSED_AGAIN: Work(bytes=plain),
        **dict.fromkeys((optimizer.MASKED, KERNEL, KERNEL_TRITON), ours),
        COMPACT_STATE: Work(bytes=weights * (16 * density + weights_and_grads + 1 / 8)),
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
        makers[KERNEL] = lambda: kernel(case, session.device, triton=False)
        makers[KERNEL_TRITON] = lambda: kernel(case, session.device, triton=True)
        makers[COMPACT_STATE] = lambda: compact_state(case, session.device)
        session.compare(what, makers)

    return measure


def compact_state(case: optimizer.Case, device: torch.device) -> Callable[[], None]:
    """A step of ours whose moments are those of the kept weights alone."""
    ours, _, options, _ = optimizer.OPTIMIZERS[case.optimizer]
    dense = optimizer.parameters(case.weights, device)
    masks = {each: torch.rand(each.shape, device=device) < case.density for each in dense}
    step: Callable[[], None] = ours(dense, masks=masks, compact_state=True, **options).step
    return step


def kernel(case: optimizer.Case, device: torch.device, triton: bool) -> Callable[[], None]:
    """The op as MaskedAdamW calls it, by the registered kernel or by the Triton kernel, which is
    compared with the reference first: where another one is registered, no contract test runs it."""
    op = ALL_OPS["update_masked_adamw_"]
    args, options = arguments(case, device)
    if not triton:
        return lambda: op(*args, **options)
    launcher = op.triton
    assert launcher is not None
    reason = launcher.supports(*args, **options)
    if reason is not None:
        raise NotImplementedError(reason)
    small, _ = arguments(dataclasses.replace(case, weights=max(1, case.weights // 100)), device)
    ours, theirs = ([[each.clone() for each in tensors] for tensors in small[:4]] for _ in range(2))
    visible = {**options, "lr": 0.1}
    launcher(*ours, *small[4:], **visible)
    op.reference(*theirs, *small[4:], **visible)
    for got, right in zip((*ours[0], *ours[2]), (*theirs[0], *theirs[2]), strict=True):
        check(got, right)
    return lambda: launcher(*args, **options)


def arguments(case: optimizer.Case, device: torch.device) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Of the op, at random."""
    params = [each.detach() for each in optimizer.parameters(case.weights, device)]
    grads, moments, squares = ([torch.rand_like(each) for each in params] for _ in range(3))
    steps = [torch.full((), 3.0, device=device) for _ in params]
    bits = [mask.pack_bits(torch.rand(p.shape, device=device) < case.density) for p in params]
    rates = {"lr": 1e-6, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.01}
    options = {**rates, "decoupled": True, "maximize": False, "zero_masked": True}
    return (params, grads, moments, squares, steps, bits, [], None, None, None), options
