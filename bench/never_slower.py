"""Suite `never_slower`: ``format="auto"`` over many shapes, batches and densities, worst first.

A case is forward + backward, forward alone below a batch of 32. It counts as lost when the sparse
layer takes more than 1/0.97 of the time of the better dense layout and more than 20 us longer, and
more than a second dense layer of the same run (``dense_again``, the machine's noise) explains.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from bench.conv2d import Shape
from bench.record import Recorder
from bench.timing import Times, forward_backward_call, forward_call, interleave
from sparsekern.nn import SparseConv2d, SparseLinear

DENSITIES = (0.5, 0.25, 0.1, 0.05, 0.01, 0.005)
FEATURES = ((64, 64), (300, 500), (1024, 1024), (768, 3072), (3072, 768), (2048, 2048))
LINEAR_BATCHES = (1, 8, 32, 128, 1024)
IMAGES = (
    Shape(16, 16, 32),
    Shape(64, 64, 32),
    Shape(128, 128, 8),
    Shape(256, 512, 8, kernel=1),
    Shape(64, 128, 16, stride=2),
    Shape(48, 48, 14, kernel=5),
)
CONV_BATCHES = (1, 8, 128)
FORWARD_ALONE_BELOW = 32
LEAST_RATIO, LEAST_LOSS_S = 0.97, 20e-6


@dataclass(frozen=True)
class Case:
    """A dense layer's shape, a batch and a density."""

    shape: Shape | tuple[int, int]
    batch: int
    density: float

    @property
    def op(self) -> str:
        return "conv2d" if isinstance(self.shape, Shape) else "linear"

    def dense(self) -> nn.Module:
        return self.shape.make() if isinstance(self.shape, Shape) else nn.Linear(*self.shape)

    def input(self) -> Tensor:
        if isinstance(self.shape, Shape):
            size = self.shape.size
            return torch.randn(self.batch, self.shape.channels, size, size)
        return torch.randn(self.batch, self.shape[0])

    def __str__(self) -> str:
        if isinstance(self.shape, Shape):
            return str(self.shape)
        return f"{self.shape[0]}->{self.shape[1]}"


def cases() -> Iterator[Case]:
    """Every shape and batch, each at half of the densities in turn."""
    pairs: list[tuple[Shape | tuple[int, int], int]] = []
    pairs += [(shape, batch) for shape in FEATURES for batch in LINEAR_BATCHES]
    pairs += [(shape, batch) for shape in IMAGES for batch in CONV_BATCHES]
    for turn, (shape, batch) in enumerate(pairs):
        for density in DENSITIES[turn % 2 :: 2]:
            yield Case(shape, batch, density)


@dataclass(frozen=True)
class Outcome:
    """One case's medians, in seconds."""

    case: Case
    dense: Times
    noise: float  # the other dense layer over this one
    sparse: Times

    @property
    def ratio(self) -> float:
        return self.dense.p50 / self.sparse.p50

    @property
    def lost(self) -> bool:
        loss = self.sparse.p50 - self.dense.p50
        explained = self.dense.p50 * max(0.0, self.noise - 1)
        return self.ratio < LEAST_RATIO and loss > max(LEAST_LOSS_S, explained)


def run(recorder: Recorder, console: Console, budget_s: float) -> None:
    """Measures every case; ``budget_s`` is for all of them together."""
    todo = list(cases())
    outcomes = []
    for case in todo:
        outcome = _measure(case, budget_s / len(todo))
        outcomes.append(outcome)
        recorder.write(
            suite="never_slower",
            op=case.op,
            variant="auto",
            shape=str(case),
            batch=case.batch,
            density=case.density,
            **{"pass": _pass(case)},
            dtype="float32",
            dense_ms=round(outcome.dense.p50 * 1e3, 5),
            p20_ms=round(outcome.sparse.p20 * 1e3, 5),
            p50_ms=round(outcome.sparse.p50 * 1e3, 5),
            p80_ms=round(outcome.sparse.p80 * 1e3, 5),
            dense_again=round(outcome.noise, 4),
            speedup_over_dense=round(outcome.ratio, 4),
            lost=outcome.lost,
        )
    console.print(_table(outcomes))


def _pass(case: Case) -> str:
    return "forward" if case.batch < FORWARD_ALONE_BELOW else "forward_backward"


def _measure(case: Case, budget_s: float) -> Outcome:
    torch.manual_seed(0)
    dense, again = case.dense(), case.dense()
    mask = torch.rand(dense.get_parameter("weight").shape) < case.density
    x = case.input()
    sparse: nn.Module
    layouts = {"dense": (dense, x), "again": (again, x.clone())}
    if isinstance(dense, nn.Conv2d):
        sparse = SparseConv2d.from_dense(dense, mask=mask, format="auto")
        last = case.dense().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        layouts["channels_last"] = (last, x.clone(memory_format=torch.channels_last))
    else:
        assert isinstance(dense, nn.Linear)
        sparse = SparseLinear.from_dense(dense, mask=mask, format="auto")
    layouts["sparse"] = (sparse, x.clone())
    calls = {}
    for name, (layer, inputs) in layouts.items():
        if _pass(case) == "forward":
            calls[name] = forward_call(layer, inputs)
        else:
            with torch.no_grad():
                grad = torch.randn_like(layer(inputs))
            calls[name] = forward_backward_call(layer, inputs, grad)
    times = interleave(calls, budget_s)
    best = min((times[name] for name in layouts if name in ("dense", "channels_last")), key=_median)
    noise = times["again"].p50 / times["dense"].p50
    return Outcome(case, best, noise, times["sparse"])


def _median(times: Times) -> float:
    return times.p50


def _table(outcomes: list[Outcome]) -> Table:
    """The median and the ten worst."""
    lost = sum(outcome.lost for outcome in outcomes)
    middle = statistics.median(outcome.ratio for outcome in outcomes)
    table = Table(
        title=f'format="auto", {len(outcomes)} cases: median {middle:.2f}x of dense, {lost} lost; '
        "the ten worst"
    )
    for heading in (
        "shape",
        "batch",
        "density",
        "pass",
        "dense us",
        "sparse us",
        "speed-up",
        "noise",
    ):
        table.add_column(heading, justify="right")
    for outcome in sorted(outcomes, key=lambda each: each.ratio)[:10]:
        case = outcome.case
        table.add_row(
            str(case),
            str(case.batch),
            f"{case.density:g}",
            _pass(case).replace("_", " + "),
            f"{outcome.dense.p50 * 1e6:.0f}",
            f"{outcome.sparse.p50 * 1e6:.0f}",
            f"{outcome.ratio:.2f}" + (" lost" if outcome.lost else ""),
            f"{outcome.noise:.2f}",
        )
    return table
