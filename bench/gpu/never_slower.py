"""Suite `never_slower`: what a plan picks, over dense, across patterns, shapes and densities.

Each layer is made sparse with ``format="auto"`` and tuned on its input, forward + backward, as
``sk.sparsify(..., example=x)`` does for a user. A case is lost below 0.97 of dense, beyond what a
second dense layer of the same run explains.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bench.conv2d import Shape
from bench.gpu.block import UnderAutocast
from bench.gpu.session import Case, Comparison, Maker, Measure, Session
from bench.gpu.torch_sparse import block_mask
from bench.never_slower import LEAST_RATIO
from bench.timing import Times, forward_backward_call
from sparsekern import tune
from sparsekern.nn import SparseConv2d, SparseLinear

OPS = (
    *("csr_linear", "csr_linear_backward", "csr_conv2d", "csr_conv2d_backward"),
    *("bsr_linear", "bsr_linear_backward", "bsr_conv2d", "bsr_conv2d_backward"),
    *("mask_linear", "mask_linear_backward", "mask_conv2d", "mask_conv2d_backward"),
)
LINEAR = ((8192, 4096, 4096), (512, 1024, 4096), (64, 4096, 4096))
CONV2D = ((64, Shape(256, 256, 28)), (64, Shape(256, 512, 14, kernel=1)))
TINY_LINEAR, TINY_CONV2D = ((32, 64, 64),), ((2, Shape(16, 16, 5)),)
# What is kept: side of the blocks (None: single weights), density, dtype.
KEPT: tuple[tuple[int | None, float, str], ...] = (
    *((None, density, "autocast") for density in (0.5, 0.1, 0.02, 0.002)),
    *((64, density, "autocast") for density in (0.5, 0.1)),
    (16, 0.1, "autocast"),
    *((None, density, "float32") for density in (0.1, 0.02)),
    (64, 0.1, "float32"),
)


@dataclass(frozen=True)
class Layer:
    """A dense layer's shape, its batch, and what is kept of it."""

    batch: int
    shape: Shape | tuple[int, int]  # or inputs and outputs
    side: int | None
    density: float
    dtype: str

    def dense(self, device: torch.device) -> nn.Module:
        made = self.shape.make() if isinstance(self.shape, Shape) else nn.Linear(*self.shape)
        made = made.to(device)
        if isinstance(made, nn.Conv2d):
            made = made.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return made

    def input(self, device: torch.device) -> Tensor:
        if isinstance(self.shape, Shape):
            x = torch.randn(self.batch, self.shape.channels, self.shape.size, self.shape.size)
            return x.to(device, memory_format=torch.channels_last)
        return torch.randn(self.batch, self.shape[0], device=device)

    def sparse(self, dense: nn.Module, x: Tensor) -> tuple[nn.Module, dict[str, float]]:
        """Tuned on ``x``, with the milliseconds that decided."""
        weight = dense.get_parameter("weight")
        block = None if self.side is None else (self.side, self.side)
        if self.side is None:
            mask = torch.rand(weight.shape, device=weight.device) < self.density
        else:
            rows, columns = weight.shape[0], weight[0].numel()
            kept = block_mask((rows, columns), self.side, self.density, weight.device)
            mask = kept.view(rows, *weight.shape[2:], weight.shape[1]).movedim(-1, 1)
        kind = SparseLinear if isinstance(dense, nn.Linear) else SparseConv2d
        made = kind.from_dense(dense, mask=mask, block_shape=block)  # type: ignore[arg-type]
        model = nn.Sequential(made)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.dtype == "autocast"):
            plan = tune(model, x, cache=False)
        return model, plan["0"].times_ms


def cases(tiny: bool) -> Iterator[Case]:
    """Linear layers first, large batches first."""
    shapes: list[tuple[int, Shape | tuple[int, int]]] = []
    shapes += [(m, (k, n)) for m, n, k in (TINY_LINEAR if tiny else LINEAR)]
    shapes += list(TINY_CONV2D if tiny else CONV2D)
    kept = KEPT[::4] if tiny else KEPT
    for (batch, shape), (side, density, dtype) in itertools.product(shapes, kept):
        layer = Layer(batch, shape, min(side, 16) if tiny and side else side, density, dtype)
        name = "single weights" if side is None else f"blocks of {side}"
        yield Case(f"{batch}, {shape}, {name} at {density}, {dtype}", _measure(layer))


def lost(times: dict[str, Times]) -> bool:
    """Whether the plan's choice is slower than dense by more than 3 % and than the noise."""
    dense, again, chosen = (times[name].p50 for name in ("dense", "dense_again", "plan"))
    return dense / chosen < LEAST_RATIO and chosen > max(dense, again) / LEAST_RATIO


def _measure(layer: Layer) -> Measure:
    def measure(session: Session) -> None:
        dense, x = layer.dense(session.device), layer.input(session.device)
        sparse, times_ms = layer.sparse(dense, x)
        name = sparse[0].format.name  # type: ignore[index]
        running = sparse[0].format.running  # type: ignore[index]

        def call(module: nn.Module) -> Maker:
            if layer.dtype == "autocast":
                module = UnderAutocast(module, session.device.type)
            with torch.no_grad():
                grad = torch.randn_like(module(x))
            return lambda: forward_backward_call(module, x, grad)

        makers = {"dense": call(dense), "dense_again": call(dense), "plan": call(sparse)}
        pattern = "unstructured" if layer.side is None else f"{layer.side}x{layer.side}"
        fields = {"op": "linear" if isinstance(dense, nn.Linear) else "conv2d"}
        fields |= {"pass": "forward_backward", "shape": str(layer.shape), "pattern": pattern}
        shown = {**fields, "batch": layer.batch, "density": layer.density, "dtype": layer.dtype}
        shown |= {"format": name, "running": running, "tuned_ms": times_ms}
        # As tune measures and as a user sees it, with the gaps between launches.
        what = Comparison(shown, cold=False, ahead=False, seconds=0.15)
        times = session.compare(what, makers)
        if len(times) == len(makers):
            session.write(**what.fields, variant="verdict", status="measured", lost=lost(times))

    return measure
