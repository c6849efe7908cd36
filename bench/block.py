"""Suite `block`: linear layers that keep whole blocks, over dense nn.Linear.

Shapes, densities and ratios are those of suite `linear`, whose unstructured kernel runs beside the
blocks at the same density.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from bench.linear import PASSES, SHAPES, Case, geomean
from bench.record import Recorder
from bench.timing import Times, forward_backward_call, forward_call, interleave
from sparsekern.nn import SparseLinear
from sparsekern.ops import bsr

DENSITIES = (0.20, 0.10, 0.05)
BLOCKS = ((4, 4), (8, 8), (16, 16), (32, 32), (1, 16))


def cases() -> list[Case]:
    return [Case(*shape, density) for shape in SHAPES for density in DENSITIES]


def name_of(block: tuple[int, int]) -> str:
    return f"sparsekern_bsr_{block[0]}x{block[1]}"


def run(recorder: Recorder, console: Console, budget_s: float) -> None:
    """Measures every case; ``budget_s`` is for all of them together."""
    todo = cases()
    results: dict[Case, dict[str, dict[str, Times]]] = {}
    for case in todo:
        results[case] = _measure(case, budget_s / len(todo) / len(PASSES))
        for which, times in results[case].items():
            for name, t in times.items():
                recorder.write(**_row(case, which, name, t, times["dense"]))
    for which in PASSES:
        console.print(_table(results, which))


def contenders(case: Case) -> dict[str, nn.Module]:
    """Layers of the same shape and density by name."""
    torch.manual_seed(0)
    dense = nn.Linear(case.in_features, case.out_features)
    again = nn.Linear(case.in_features, case.out_features)
    layers: dict[str, nn.Module] = {"dense": dense, "dense_again": again}
    mask = torch.rand(case.out_features, case.in_features) < case.density
    layers["sparsekern_csr"] = SparseLinear.from_dense(dense, mask=mask, format="csr")
    for block in BLOCKS:
        count = round(case.density * mask.numel() / (block[0] * block[1]))
        kept = bsr.block_topk(torch.rand(mask.shape), count, block)
        layers[name_of(block)] = SparseLinear.from_dense(
            dense, mask=kept, format="bsr", block_shape=block
        )
    return layers


def _measure(case: Case, budget_s: float) -> dict[str, dict[str, Times]]:
    layers = contenders(case)
    x = torch.randn(case.batch, case.in_features, requires_grad=True)
    grad = torch.randn(case.batch, case.out_features)
    forward: dict[str, Callable[[], Any]] = {n: forward_call(m, x) for n, m in layers.items()}
    both = {n: forward_backward_call(m, x, grad) for n, m in layers.items()}
    return {
        "forward": interleave(forward, budget_s),
        "forward_backward": interleave(both, budget_s),
    }


def _row(case: Case, which: str, name: str, times: Times, dense: Times) -> dict[str, Any]:
    passes = 1 if which == "forward" else 3
    flops = 2 * passes * case.batch * case.in_features * case.out_features
    useful = flops * (1.0 if name.startswith("dense") else case.density)
    return {
        "suite": "block",
        "op": "linear",
        "variant": name,
        "pass": which,
        "shape": [case.batch, case.in_features, case.out_features],
        "pattern": name.rpartition("_")[2] if "bsr" in name else "unstructured",
        "density": case.density,
        "dtype": "float32",
        **times.row(),
        "useful_gflops": round(useful / times.p50 / 1e9, 2),
        "speedup_over_dense": round(dense.p50 / times.p50, 4),
    }


def _table(results: dict[Case, dict[str, dict[str, Times]]], which: str) -> Table:
    """Geometric means of the speed-ups over dense, one row a density."""
    names = [n for n in next(iter(results.values()))[which] if n != "dense"]
    table = Table(title=f"Blocks, {which.replace('_', ' + ')}: speed-up over dense nn.Linear")
    for heading in ("density", *names):
        table.add_column(heading.removeprefix("sparsekern_"), justify="right")
    for density in DENSITIES:
        chosen = [both[which] for case, both in results.items() if case.density == density]
        cells = [f"{geomean([t['dense'].p50 / t[n].p50 for t in chosen]):.2f}" for n in names]
        table.add_row(f"{density:.2f}", *cells)
    return table
