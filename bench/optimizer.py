"""Suite `optimizer`: one optimiser step over masked weights, against torch's fused optimiser.

The rival multiplies gradients and weights by a float mask around torch's fused step (on the CPU a
bool mask is eight times slower). Beside it the fused step alone, which knows no mask,
`MaskedAdamW` or `MaskedSGD` with dense weights, gradients and state, and both optimisers on compact
values: weights, gradients and state of the kept weights alone, where there is nothing to mask.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from bench.record import Recorder
from bench.timing import Times, interleave
from sparsekern.optim import MaskedAdamW, MaskedSGD

SIZES = (10_000_000, 50_000_000)
TENSORS = 10  # of equal size
DENSITIES = (0.5, 0.1, 0.01)
CPU = torch.device("cpu")
RATE = 1e-6  # small, so that thousands of steps leave ordinary numbers

RIVAL, FUSED, FUSED_AGAIN = "fused_and_masks", "fused", "fused_again"
MASKED, COMPACT, COMPACT_TORCH = "masked", "compact", "compact_fused"

# name -> ours, torch's fused, options, bytes of a float32 weight that pass through memory
OPTIMIZERS: dict[str, tuple[Any, Any, dict[str, Any], int]] = {
    "adamw": (MaskedAdamW, torch.optim.AdamW, {"lr": RATE}, 28),
    "sgd": (MaskedSGD, torch.optim.SGD, {"lr": RATE, "momentum": 0.9, "weight_decay": 1e-4}, 20),
}


@dataclass(frozen=True)
class Case:
    optimizer: str
    weights: int
    density: float

    def __str__(self) -> str:
        return f"{self.optimizer} {self.weights / 1e6:.0f}M"


def cases() -> Iterator[Case]:
    for weights in SIZES:
        for optimizer in OPTIMIZERS:
            for density in DENSITIES:
                yield Case(optimizer, weights, density)


def run(recorder: Recorder, console: Console, budget_s: float) -> None:
    """Measures every case; ``budget_s`` is for all of them together."""
    todo = list(cases())
    results: dict[Case, dict[str, Times]] = {}
    for case in todo:
        results[case] = interleave(contenders(case), budget_s / len(todo))
        for name, times in results[case].items():
            recorder.write(**_row(case, name, times, results[case]))
    console.print(_table(results))


def parameters(size: int, device: torch.device = CPU) -> list[nn.Parameter]:
    """Weights with gradients, in tensors of equal size."""
    made = [nn.Parameter(torch.randn(size // TENSORS, device=device)) for _ in range(TENSORS)]
    for parameter in made:
        parameter.grad = torch.randn_like(parameter)
    return made


def makers(case: Case, device: torch.device = CPU) -> dict[str, Callable[[], Callable[[], None]]]:
    """What makes the steps, each over weights, gradients and states of its own."""
    torch.manual_seed(0)
    ours, theirs, options, _ = OPTIMIZERS[case.optimizer]
    size = case.weights // TENSORS
    masks = [torch.rand(size, device=device) < case.density for _ in range(TENSORS)]
    nnz = sum(int(torch.count_nonzero(mask)) for mask in masks)

    def made(count: int) -> list[nn.Parameter]:
        return parameters(count, device)

    def masked() -> Callable[[], None]:
        dense = made(case.weights)
        step: Callable[[], None] = ours(
            dense, masks=dict(zip(dense, masks, strict=True)), **options
        ).step
        return step

    return {
        RIVAL: lambda: _with_masks(made(case.weights), masks, theirs, options),
        FUSED: lambda: theirs(made(case.weights), fused=True, **options).step,
        FUSED_AGAIN: lambda: theirs(made(case.weights), fused=True, **options).step,
        MASKED: masked,
        COMPACT: lambda: ours(made(nnz), **options).step,
        COMPACT_TORCH: lambda: theirs(made(nnz), fused=True, **options).step,
    }


def contenders(case: Case) -> dict[str, Callable[[], None]]:
    """All of the steps."""
    return {name: make() for name, make in makers(case).items()}


def _with_masks(
    params: list[nn.Parameter], masks: list[Tensor], kind: Any, options: dict[str, Any]
) -> Callable[[], None]:
    optimizer = kind(params, fused=True, **options)
    # The faster one on the CPU; a bool mask moves fewer bytes on a GPU (unconfirmed).
    factors = [mask if mask.is_cuda else mask.float() for mask in masks]

    def step() -> None:
        with torch.no_grad():
            for parameter, factor in zip(params, factors, strict=True):
                parameter.grad.mul_(factor)
        optimizer.step()
        with torch.no_grad():
            for parameter, factor in zip(params, factors, strict=True):
                parameter.mul_(factor)

    return step


def _row(case: Case, name: str, times: Times, all_: dict[str, Times]) -> dict[str, Any]:
    kept = case.density if name in (COMPACT, COMPACT_TORCH) else 1.0
    moved = OPTIMIZERS[case.optimizer][3] * case.weights * kept
    return {
        "suite": "optimizer",
        "op": case.optimizer,
        "variant": name,
        "pass": "step",
        "shape": [case.weights],
        "pattern": "unstructured",
        "density": case.density,
        "dtype": "float32",
        **times.row(),
        "least_gbps": round(moved / times.p50 / 1e9, 2),
        "speedup_over_fused_and_masks": round(all_[RIVAL].p50 / times.p50, 4),
        "speedup_over_fused": round(all_[FUSED].p50 / times.p50, 4),
    }


def _table(results: dict[Case, dict[str, Times]]) -> Table:
    table = Table(title="One optimiser step: ms, and speed-up over torch's fused step with masks")
    names = (RIVAL, FUSED, FUSED_AGAIN, MASKED, COMPACT, COMPACT_TORCH)
    for heading in ("optimizer", "density", *names):
        table.add_column(heading, justify="right")
    for case, times in results.items():
        cells = [
            f"{times[name].p50 * 1e3:.2f} ({times[RIVAL].p50 / times[name].p50:.2f}x)"
            for name in names
        ]
        table.add_row(str(case), f"{case.density:.2f}", *cells)
    return table
