"""Suite `small_batch`: linear layers of constant fan-in, forward alone for few rows, over dense.

The mask has as many weights in every row, so that formats `csr` and `condensed` hold the same one.
"""

from __future__ import annotations

from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from bench import rivals
from bench.linear import Case, geomean
from bench.record import Recorder
from bench.timing import Times, forward_call, interleave
from sparsekern.nn import SparseLinear
from sparsekern.ops import mask as mask_ops
from sparsekern.patterns import FanIn

BATCHES = (1, 8, 16)
SIZES = (1024, 4096)
DENSITIES = (0.10, 0.05, 0.01)
FORMATS = ("csr", "condensed")


def cases() -> list[Case]:
    return [Case(b, size, size, d) for size in SIZES for d in DENSITIES for b in BATCHES]


def run(recorder: Recorder, console: Console, budget_s: float) -> None:
    """Measures every case; ``budget_s`` is for all of them together."""
    todo = cases()
    results: dict[Case, dict[str, Times]] = {}
    for case in todo:
        calls = {
            name: forward_call(layer, torch.randn(case.batch, case.in_features))
            for name, layer in contenders(case).items()
        }
        results[case] = times = interleave(calls, budget_s / len(todo))
        for name, t in times.items():
            recorder.write(**_row(case, name, t, times["dense"]))
    console.print(_table(results))


def contenders(case: Case) -> dict[str, nn.Module]:
    """Layers of the same shape and density by name."""
    torch.manual_seed(0)
    dense = nn.Linear(case.in_features, case.out_features)
    again = nn.Linear(case.in_features, case.out_features)
    layers: dict[str, nn.Module] = {"dense": dense, "dense_again": again}
    scores = torch.rand(case.out_features, case.in_features)
    mask = mask_ops.topk_rows(scores, FanIn().count(case.density, case.in_features))
    for format in FORMATS:
        layers[f"sparsekern_{format}"] = SparseLinear.from_dense(dense, mask=mask, format=format)
    layers.update(rivals.installed(dense, mask)[0])
    return layers


def _row(case: Case, name: str, times: Times, dense: Times) -> dict[str, Any]:
    return {
        "suite": "small_batch",
        "op": "linear",
        "variant": name,
        "pass": "forward",
        "shape": [case.batch, case.in_features, case.out_features],
        "pattern": "fan_in",
        "density": case.density,
        "dtype": "float32",
        **times.row(),
        "speedup_over_dense": round(dense.p50 / times.p50, 4),
    }


def _table(results: dict[Case, dict[str, Times]]) -> Table:
    """Speed-ups over dense, a geometric mean a batch below them."""
    names = [name for name in next(iter(results.values())) if name != "dense"]
    table = Table(title="Small batches, forward: speed-up over dense nn.Linear")
    for heading in ("batch, in->out", "density", "dense ms", *names):
        table.add_column(heading.removeprefix("sparsekern_"), justify="right")
    for case, times in results.items():
        cells = [f"{times['dense'].p50 / times[name].p50:.2f}" for name in names]
        table.add_row(str(case), f"{case.density:.2f}", f"{times['dense'].p50 * 1e3:.3f}", *cells)
    table.add_section()
    for batch in BATCHES:
        chosen = [times for case, times in results.items() if case.batch == batch]
        cells = [f"{geomean([t['dense'].p50 / t[name].p50 for t in chosen]):.2f}" for name in names]
        table.add_row(f"geometric mean of batch {batch}", "", "", *cells)
    return table
