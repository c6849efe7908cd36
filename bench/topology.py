"""Suite `topology`: a change of a layer's topology, over one training step of that layer.

The change starts from given scores: the mask of the largest as bits, the index of the new mask in
both directions, the values in their new places, and optimiser state that moves along. It is
compared with forward, backward and optimiser step of the same layer at batch 128, and with those of
its dense twin, in the same run. Each change drops and grows about three weights in ten.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from bench.linear import DENSITIES
from bench.record import Recorder
from bench.timing import Times, interleave
from sparsekern.nn import SparseConv2d, SparseLinear
from sparsekern.ops import mask as mask_ops
from sparsekern.optim import move_state

BATCH = 128
CHANGED = 0.3  # fraction of the scores that differ between two topologies
STEP, DENSE_STEP, CHANGE = "training_step", "dense_training_step", "topology"
PARTS = ("topk", "set_mask", "move_state")

# kind of layer -> input and output features; input and output channels, height and width
SHAPES: dict[str, tuple[tuple[int, ...], ...]] = {
    "linear": ((1024, 1024), (2048, 2048), (4096, 4096), (768, 3072)),
    "conv2d": ((64, 64, 32), (128, 128, 16), (256, 256, 8)),
}
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=1e-3, momentum=0.9),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=1e-3),
}


@dataclass(frozen=True)
class Case:
    kind: str
    shape: tuple[int, ...]
    density: float
    optimizer: str

    def __str__(self) -> str:
        size = "" if self.kind == "linear" else f", {self.shape[2]}x{self.shape[2]}"
        return f"{self.kind} {self.shape[0]}->{self.shape[1]}{size}"

    def make(self) -> tuple[nn.Module, Tensor]:
        """The layer, and what it is called with."""
        before, after, *size = self.shape
        x = torch.randn(BATCH, before, *size, *size, requires_grad=True)
        if self.kind == "linear":
            return SparseLinear(before, after, density=self.density, format="csr"), x
        return SparseConv2d(before, after, 3, padding=1, density=self.density, format="csr"), x


def cases() -> Iterator[Case]:
    for kind, shapes in SHAPES.items():
        for shape, density, optimizer in itertools.product(shapes, DENSITIES, OPTIMIZERS):
            yield Case(kind, shape, density, optimizer)


def run(recorder: Recorder, console: Console, budget_s: float) -> None:
    """Measures every case; ``budget_s`` is for all of them together."""
    todo = list(cases())
    results: dict[Case, dict[str, Times]] = {}
    for case in todo:
        results[case] = interleave(contenders(case), budget_s / len(todo))
        for name, times in results[case].items():
            recorder.write(**_row(case, name, times, results[case]))
    console.print(_table(results))


def contenders(case: Case) -> dict[str, Callable[[], None]]:
    """The training steps, the whole change, and the change's parts alone."""
    torch.manual_seed(0)
    layer, x = case.make()
    stored = layer.format
    dense = layer.to_dense()
    optimizer = OPTIMIZERS[case.optimizer](layer.parameters())
    step = _training_step(layer, optimizer, x)
    step()  # the optimiser has state from here on
    first = torch.rand(stored.shape)
    second = torch.where(torch.rand(stored.shape) < CHANGED, torch.rand(stored.shape), first)
    scores = itertools.cycle((first, second))
    masks = itertools.cycle([mask_ops.topk_bits(each, stored.nnz) for each in (first, second)])

    def change() -> None:
        moved = stored.set_mask(mask_ops.topk_bits(next(scores), stored.nnz))
        move_state(optimizer, stored.parameter, moved)

    same = stored.set_mask(next(masks))
    return {
        STEP: step,
        DENSE_STEP: _training_step(dense, OPTIMIZERS[case.optimizer](dense.parameters()), x),
        CHANGE: change,
        "topk": lambda: mask_ops.topk_bits(next(scores), stored.nnz),
        "set_mask": lambda: stored.set_mask(next(masks)),
        "move_state": lambda: move_state(optimizer, stored.parameter, same),
    }


def _training_step(
    layer: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor
) -> Callable[[], None]:
    grad = torch.randn_like(layer(x))

    def step() -> None:
        layer(x).backward(grad)
        optimizer.step()
        optimizer.zero_grad()
        x.grad = None

    return step


def _row(case: Case, name: str, times: Times, all_: dict[str, Times]) -> dict[str, Any]:
    return {
        "suite": "topology",
        "op": case.kind,
        "variant": name,
        "pass": case.optimizer,
        "shape": [BATCH, *case.shape],
        "pattern": "unstructured",
        "density": case.density,
        "dtype": "float32",
        **times.row(),
        "of_a_step": round(times.p50 / all_[STEP].p50, 4),
        "of_a_dense_step": round(times.p50 / all_[DENSE_STEP].p50, 4),
    }


def _table(results: dict[Case, dict[str, Times]]) -> Table:
    table = Table(title=f"A topology change over a training step of the layer, batch {BATCH}")
    head = ("layer", "density", "optimizer", "step ms", "dense step ms", "change ms", *PARTS)
    for heading in (*head, "of a step", "of a dense step"):
        table.add_column(heading, justify="right")
    for case, times in results.items():
        cells = [f"{times[name].p50 * 1e3:.2f}" for name in (STEP, DENSE_STEP, CHANGE, *PARTS)]
        ratios = [f"{times[CHANGE].p50 / times[each].p50:.2f}" for each in (STEP, DENSE_STEP)]
        table.add_row(str(case), f"{case.density:.2f}", case.optimizer, *cells, *ratios)
    return table
