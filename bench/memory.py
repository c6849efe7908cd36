"""Suite `memory`: bytes that a training run keeps, over the dense twin's.

After one AdamW step with a static mask every tensor that stays is counted from the tensors
themselves: parameters, buffers (indices, layouts, bit masks), gradients and optimiser state, each
storage once. Activations and the scratch of kernels are not in it: the first are those of the dense
model, the second is per thread and does not grow with the model.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import sparsekern as sk
from bench.record import Recorder
from sparsekern.models import ResNet, ViT

DENSITIES = (0.5, 0.2, 0.1, 0.05, 0.01)
BLOCK = (16, 16)
FORMATS = ("csr", "bsr", "masked")


def mlp() -> tuple[nn.Module, Tensor]:
    """Four layers of 1024 to 1024."""
    layers = [each for _ in range(4) for each in (nn.Linear(1024, 1024), nn.ReLU())]
    return nn.Sequential(*layers), torch.randn(2, 1024)


def resnet18() -> tuple[nn.Module, Tensor]:
    """ResNet-18 for images of 32 x 32, ten classes; the first convolution stays dense."""
    return ResNet(depth=18).build(torch.Size((3, 32, 32)), 10), torch.randn(2, 3, 32, 32)


def vit() -> tuple[nn.Module, Tensor]:
    """ViT-S for images of 32 x 32: twelve blocks of width 384, 64 tokens."""
    made = ViT(patch=4, features=384, heads=6, depth=12)
    return made.build(torch.Size((3, 32, 32)), 10), torch.randn(2, 3, 32, 32)


MODELS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "MLP, 4 x (1024 to 1024)": mlp,
    "ResNet-18, 32 x 32": resnet18,
    "ViT-S, 32 x 32": vit,
}
EXCLUDED = {"ResNet-18, 32 x 32": ("conv1",)}


@dataclass(frozen=True)
class Held:
    """Bytes by what they are for."""

    weights: int
    gradients: int
    state: int
    indices: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.state + self.indices


def held(model: nn.Module, optimizer: torch.optim.Optimizer) -> Held:
    """What a model and its optimiser keep between two steps, gradients included."""
    seen: set[int] = set()

    def count(tensors: Iterable[Any]) -> int:
        total = 0
        for tensor in tensors:
            if isinstance(tensor, Tensor) and tensor.untyped_storage().data_ptr() not in seen:
                seen.add(tensor.untyped_storage().data_ptr())
                total += tensor.untyped_storage().nbytes()
        return total

    parameters = list(model.parameters())
    return Held(
        weights=count(parameters),
        gradients=count(parameter.grad for parameter in parameters),
        state=count(value for state in optimizer.state.values() for value in state.values()),
        indices=count(model.buffers()),
    )


def trained(model: nn.Module, x: Tensor) -> Held:
    """After one step of AdamW."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model(x).square().mean().backward()
    optimizer.step()
    return held(model, optimizer)


def sparse(name: str, dense: nn.Module, density: float, format: str) -> nn.Module:
    """A sparse copy; layers whose sizes the blocks do not divide stay dense."""
    model = copy.deepcopy(dense)
    pattern = sk.patterns.Block(*BLOCK) if format == "bsr" else sk.patterns.UNSTRUCTURED
    excluded = list(EXCLUDED.get(name, ()))
    sk.sparsify(
        model, density, distribution="uniform", format=format, pattern=pattern, exclude=excluded
    )
    return model


def cases() -> Iterator[tuple[str, str, float]]:
    for name in MODELS:
        for format in FORMATS:
            for density in DENSITIES:
                yield name, format, density


def run(recorder: Recorder, console: Console, budget_s: float) -> None:
    """Counts every case; there is nothing to time."""
    table = Table(title="Weights, gradients, AdamW state and indices over dense")
    for heading in ("network", "format", "density", "MB", "of dense", "indices"):
        table.add_column(heading, justify="right")
    twins: dict[str, tuple[nn.Module, Tensor, Held]] = {}
    for name, format, density in cases():
        if name not in twins:
            torch.manual_seed(0)
            dense, x = MODELS[name]()
            twins[name] = (dense, x, trained(copy.deepcopy(dense), x))
        dense, x, whole = twins[name]
        own = trained(sparse(name, dense, density, format), x)
        ratio = own.total / whole.total
        recorder.write(
            suite="memory",
            op=name,
            variant=format,
            density=density,
            **{"pass": "adamw"},
            dtype="float32",
            weight_bytes=own.weights,
            gradient_bytes=own.gradients,
            state_bytes=own.state,
            index_bytes=own.indices,
            total_bytes=own.total,
            dense_bytes=whole.total,
            of_dense=round(ratio, 4),
        )
        share = f"{own.indices / own.total:.2f}"
        table.add_row(
            name, format, f"{density:g}", f"{own.total / 1e6:.2f}", f"{ratio:.3f}x", share
        )
    console.print(table)
