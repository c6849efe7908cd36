"""Suite `linear`: forward and forward + backward of a linear layer, over dense nn.Linear.

Every number is a ratio within one case, whose contenders take turns. Layout changes, permutations
and autograd's own cost are counted. ``dense_again`` is a second dense layer: its ratio to the first
shows how far two equal things differ on this machine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from bench import rivals
from bench.record import Recorder
from bench.timing import Times, forward_backward_call, forward_call, interleave
from sparsekern.nn import SparseLinear

SHAPES = ((128, 1024, 1024), (512, 2048, 2048), (128, 4096, 4096), (896, 768, 3072))
DENSITIES = (0.20, 0.10, 0.05, 0.01)
PASSES = ("forward", "forward_backward")


@dataclass(frozen=True)
class Case:
    batch: int
    in_features: int
    out_features: int
    density: float

    def __str__(self) -> str:
        return f"{self.batch}, {self.in_features}->{self.out_features}"


def cases() -> Iterator[Case]:
    for shape in SHAPES:
        for density in DENSITIES:
            yield Case(*shape, density)


def run(recorder: Recorder, console: Console, budget_s: float) -> None:
    """Measures every case; ``budget_s`` is for all of them together."""
    todo = list(cases())
    results: dict[Case, dict[str, dict[str, Times]]] = {}
    for case in todo:
        results[case] = _measure(case, budget_s / len(todo) / len(PASSES))
        for which, times in results[case].items():
            for name, t in times.items():
                recorder.write(**_row(case, which, name, t, times["dense"]))
    for which in PASSES:
        console.print(_table(results, which))


def _measure(case: Case, budget_s: float) -> dict[str, dict[str, Times]]:
    torch.manual_seed(0)
    dense = nn.Linear(case.in_features, case.out_features)
    again = nn.Linear(case.in_features, case.out_features)
    mask = torch.rand(case.out_features, case.in_features) < case.density
    x = torch.randn(case.batch, case.in_features, requires_grad=True)
    grad = torch.randn(case.batch, case.out_features)
    layers: dict[str, nn.Module] = {"dense": dense, "dense_again": again}
    layers["sparsekern_csr"] = SparseLinear.from_dense(dense, mask=mask, format="csr")
    layers.update(rivals.installed(dense, mask)[0])
    forward: dict[str, Callable[[], Any]] = {
        n: forward_call(layer, x) for n, layer in layers.items()
    }
    both = {
        name: forward_backward_call(layer, x, grad)
        for name, layer in layers.items()
        if not rivals.forward_only(name)
    }
    return {
        "forward": interleave(forward, budget_s),
        "forward_backward": interleave(both, budget_s),
    }


def _row(case: Case, which: str, name: str, times: Times, dense: Times) -> dict[str, Any]:
    passes = 1 if which == "forward" else 3
    flops = 2 * passes * case.batch * case.in_features * case.out_features
    useful = flops * (1.0 if name.startswith("dense") else case.density)
    return {
        "suite": "linear",
        "op": "linear",
        "variant": name,
        "pass": which,
        "shape": [case.batch, case.in_features, case.out_features],
        "pattern": "unstructured",
        "density": case.density,
        "dtype": "float32",
        **times.row(),
        "useful_gflops": round(useful / times.p50 / 1e9, 2),
        "speedup_over_dense": round(dense.p50 / times.p50, 4),
    }


def _table(results: dict[Case, dict[str, dict[str, Times]]], which: str) -> Table:
    """Speed-ups over dense, a geometric mean below them."""
    names = [n for n in next(iter(results.values()))[which] if n != "dense"]
    table = Table(title=f"Linear, {which.replace('_', ' + ')}: speed-up over dense nn.Linear")
    for heading in ("batch, in->out", "density", "dense ms", *names):
        table.add_column(heading, justify="right")
    for case, both in results.items():
        times = both[which]
        cells = [f"{times['dense'].p50 / times[n].p50:.2f}" for n in names]
        table.add_row(str(case), f"{case.density:.2f}", f"{times['dense'].p50 * 1e3:.2f}", *cells)
    table.add_section()
    for density in DENSITIES:
        chosen = [both[which] for case, both in results.items() if case.density == density]
        cells = [f"{geomean([t['dense'].p50 / t[n].p50 for t in chosen]):.2f}" for n in names]
        table.add_row("geometric mean", f"{density:.2f}", "", *cells)
    return table


def geomean(values: list[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))
