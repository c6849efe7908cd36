"""Suite `ceilings`: copy bandwidth, dense products and torch's fused AdamW on this device."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from bench import optimizer
from bench.gpu.session import Case, Comparison, Measure, Session, Work
from bench.gpu.shapes import Shape, flops, products

BYTES, TINY_BYTES = (1 << 26, 1 << 28, 1 << 30, 1 << 32), (1 << 14,)
WEIGHTS, TINY_WEIGHTS = 100_000_000, 10_000
MASKING_BYTES = 18  # gradient and weight read and written, and for each a byte of mask


def cases(tiny: bool) -> Iterator[Case]:
    """In the order of what they decide."""
    for size in TINY_BYTES if tiny else BYTES:
        yield Case(f"copy of {size} bytes", _copy(size))
    for shape in products(tiny):
        yield Case(f"product {shape}", _product(shape))
    yield Case("torch fused AdamW", _fused_adamw(TINY_WEIGHTS if tiny else WEIGHTS))


def _copy(size: int) -> Measure:
    def measure(session: Session) -> None:
        source = torch.ones(size // 4, device=session.device)
        target = torch.empty_like(source)
        fields = {"op": "copy", "shape": [size], "dtype": "float32", "density": 1.0}
        what = Comparison(fields, {"torch": Work(bytes=2 * source.nbytes)})
        session.compare(what, {"torch": lambda: lambda: target.copy_(source)})

    return measure


def _product(shape: Shape) -> Measure:
    m, n, k = shape

    def measure(session: Session) -> None:
        x, weight = (torch.randn(side, k, device=session.device) for side in (m, n))
        works = {"dense": Work(flops=flops(shape))}
        fields = {"op": "linear", "pass": "forward", "shape": list(shape), "density": 1.0}
        for dtype in ("bfloat16", "float32"):
            a, b = (each.to(getattr(torch, dtype)) for each in (x, weight))
            what = Comparison({**fields, "dtype": dtype}, works, seconds=0.1)
            session.compare(what, {"dense": lambda a=a, b=b: lambda: F.linear(a, b)})

    return measure


def _fused_adamw(weights: int) -> Measure:
    def measure(session: Session) -> None:
        makers = optimizer.makers(optimizer.Case("adamw", weights, 0.5), session.device)
        moved = optimizer.OPTIMIZERS["adamw"][3] * weights
        works = {
            optimizer.FUSED: Work(bytes=moved),
            optimizer.RIVAL: Work(bytes=moved + MASKING_BYTES * weights),
        }
        fields = {"op": "adamw", "pass": "step", "shape": [weights], "dtype": "float32"}
        what = Comparison({**fields, "density": 1.0}, works, dense=optimizer.FUSED)
        session.compare(what, {name: makers[name] for name in works})

    return measure
