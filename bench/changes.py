"""Suite `changes`: changes of topology of whole networks, over one dense training step.

A change gives every layer a new mask, an index in both directions, and moves values and momentum.
`scores_given`: the mask of each layer's largest scores. `rigl` and `set`: the Pruner's update with
that method, RigL from given dense gradients. `many_weights` is one matrix of 25 million weights,
which also shows exact top-k alone, as a bool mask and as bits.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from bench.record import Recorder
from bench.timing import Times, interleave, training_step
from bench.topology import CHANGED, OPTIMIZERS
from sparsekern.models import ResNet
from sparsekern.nn import SparseLinear
from sparsekern.ops import mask as mask_ops
from sparsekern.optim import move_state
from sparsekern.prune import SET, Pruner, RigL
from sparsekern.prune.method import Layer

BATCH = 128
DENSITIES = (0.1, 0.01)
MANY = 5000  # rows and columns of the matrix of 25 million weights
DENSE_STEP, STEP = "dense_training_step", "training_step"


@dataclass(frozen=True, kw_only=True)
class GivenRigL(RigL):
    """RigL whose dense gradients are given, so that an update can be timed alone."""

    needs: ClassVar[frozenset[str]] = frozenset()
    gradients: dict[str, Tensor] = field(default_factory=dict)

    def grow_scores(self, layer: Layer) -> Tensor:
        return self.gradients[layer.name].abs()


def mlp() -> tuple[nn.Module, Tensor]:
    """Four layers of 1024 to 1024."""
    parts = [part for _ in range(4) for part in (nn.Linear(1024, 1024), nn.ReLU())]
    return nn.Sequential(*parts), torch.randn(BATCH, 1024)


def resnet18() -> tuple[nn.Module, Tensor]:
    """The network of CIFAR's shape."""
    return ResNet(depth=18).network((3, 32, 32), 10, None), torch.randn(BATCH, 3, 32, 32)


NETWORKS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {"mlp": mlp, "resnet18": resnet18}


def run(recorder: Recorder, console: Console, budget_s: float) -> None:
    """Measures every case; ``budget_s`` is for all of them together."""
    table = Table(title=f"Changes of topology of whole networks, batch {BATCH}")
    for heading in ("what", "density", "change", "ms", "of a step", "of a dense step"):
        table.add_column(heading, justify="right")
    names = [*NETWORKS, "many_weights"]
    for name, density in itertools.product(names, DENSITIES):
        made = contenders(name, density) if name in NETWORKS else many_weights(density)
        times = interleave(made, budget_s / len(names) / len(DENSITIES))
        for variant, each in times.items():
            ratios = {
                key: round(each.p50 / times[step].p50, 4) if step in times else None
                for key, step in (("of_a_step", STEP), ("of_a_dense_step", DENSE_STEP))
            }
            recorder.write(**_row(name, density, variant, each), **ratios)
            cells = ["" if value is None else f"{value:.2f}" for value in ratios.values()]
            table.add_row(name, f"{density:.2f}", variant, f"{each.p50 * 1e3:.2f}", *cells)
    console.print(table)


def _row(name: str, density: float, variant: str, times: Times) -> dict[str, Any]:
    return {
        "suite": "changes",
        "op": name,
        "variant": variant,
        "pass": "sgd",
        "shape": [BATCH],
        "pattern": "unstructured",
        "density": density,
        "dtype": "float32",
        **times.row(),
    }


def contenders(name: str, density: float) -> dict[str, Callable[[], None]]:
    """Training steps of a network, dense and sparse, and three kinds of change."""
    torch.manual_seed(0)
    dense, x = NETWORKS[name]()
    gradients: dict[str, Tensor] = {}
    methods = {
        "rigl": GivenRigL(density=density, gradients=gradients),
        "set": SET(density=density),
    }
    pruners = {}
    for method_name, method in methods.items():
        model = copy.deepcopy(dense)
        optimizer = OPTIMIZERS["sgd"](model.parameters())
        pruners[method_name] = Pruner(model, optimizer, method, total_steps=10**9, format="csr")
        _step(model, optimizer, x)()  # the optimiser has state from here on
    pruner = pruners["rigl"]
    layers = [layer for layer in pruner.layers]
    gradients.update({layer.name: torch.randn(layer.format.shape) for layer in layers})
    return {
        DENSE_STEP: _step(dense, OPTIMIZERS["sgd"](dense.parameters()), x),
        STEP: _step(pruner.model, pruner.optimizer, x),
        "scores_given": scores_given(pruner.optimizer, layers),
        **{key: each.update_topology for key, each in pruners.items()},
    }


def _step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> Callable[[], None]:
    return training_step(lambda: model(x).square().mean(), optimizer)


def scores_given(optimizer: torch.optim.Optimizer, layers: list[Layer]) -> Callable[[], None]:
    """Changes between the masks of two lists of scores, which differ in about three of ten."""
    first = [torch.rand(layer.format.shape) for layer in layers]
    second = [
        torch.where(torch.rand(each.shape) < CHANGED, torch.rand(each.shape), each)
        for each in first
    ]
    turns: Iterator[list[Tensor]] = itertools.cycle((first, second))

    def change() -> None:
        for layer, scores in zip(layers, next(turns), strict=True):
            stored = layer.format
            moved = stored.set_mask(mask_ops.topk_bits(scores, stored.nnz))
            move_state(optimizer, stored.parameter, moved)

    return change


def many_weights(density: float) -> dict[str, Callable[[], None]]:
    """The change of one matrix, and top-k of its scores alone."""
    torch.manual_seed(0)
    layer = SparseLinear(MANY, MANY, bias=False, density=density, format="csr")
    optimizer = OPTIMIZERS["sgd"](layer.parameters())
    _step(layer, optimizer, torch.randn(1, MANY))()
    given = Layer("weight", layer.format, layer.format.nnz, torch.Generator())
    scores = torch.rand(MANY, MANY)

    def topk(run: Callable[[Tensor, int], Tensor]) -> Callable[[], None]:
        def call() -> None:
            run(scores, layer.format.nnz)

        return call

    return {
        "topk": topk(mask_ops.topk),
        "topk_bits": topk(mask_ops.topk_bits),
        "scores_given": scores_given(optimizer, [given]),
    }
