"""Suite `conv2d`: forward and forward + backward of a convolution, over dense and sparseprop.

Sparse layers take NCHW in and out; ``sparsekern_channels_last`` takes channels_last. The baseline
is dense nn.Conv2d in the better of its two layouts, NCHW and channels_last, each with inputs and
gradients in its own layout. Packing, index offsets and autograd's own cost are counted.
``dense_again`` is a second dense layer in NCHW: its ratio to the first shows the noise.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from bench import rivals
from bench.linear import DENSITIES, PASSES, geomean
from bench.record import Recorder
from bench.timing import Times, forward_backward_call, forward_call, interleave
from sparsekern.nn import SparseConv2d

BATCH = 128
DENSE = ("dense_nchw", "dense_channels_last")


@dataclass(frozen=True)
class Shape:
    """Channels in and out, image size, kernel size and stride."""

    channels: int
    out_channels: int
    size: int
    kernel: int = 3
    stride: int = 1

    def __str__(self) -> str:
        kind = f"{self.kernel}x{self.kernel}" + (f"/{self.stride}" if self.stride > 1 else "")
        return f"{self.channels}->{self.out_channels} at {self.size}x{self.size}, {kind}"

    def make(self) -> nn.Conv2d:
        padding = self.kernel // 2
        return nn.Conv2d(self.channels, self.out_channels, self.kernel, self.stride, padding)


# The first three are those of the table in the README; the others are shown as they are.
SHAPES = (
    Shape(64, 64, 32),
    Shape(128, 128, 16),
    Shape(256, 256, 8),
    Shape(256, 512, 8, kernel=1),
    Shape(128, 256, 16, stride=2),
)
MAIN = SHAPES[:3]
Case = tuple[Shape, float]


def cases() -> Iterator[Case]:
    for shape in SHAPES:
        for density in DENSITIES:
            yield shape, density


def run(recorder: Recorder, console: Console, budget_s: float) -> None:
    """Measures every case; ``budget_s`` is for all of them together."""
    todo = list(cases())
    results: dict[Case, dict[str, dict[str, Times]]] = {}
    for case in todo:
        results[case] = _measure(case, budget_s / len(todo) / len(PASSES))
        for which, times in results[case].items():
            for name, each in times.items():
                recorder.write(**_row(case, which, name, each, _best_dense(times)))
    for which in PASSES:
        console.print(_table(results, which))


def _best_dense(times: dict[str, Times]) -> Times:
    return min((times[name] for name in DENSE), key=lambda each: each.p50)


def _measure(case: Case, budget_s: float) -> dict[str, dict[str, Times]]:
    shape, density = case
    torch.manual_seed(0)
    dense = shape.make()
    mask = torch.rand(dense.weight.shape) < density
    last = torch.channels_last
    x = torch.randn(BATCH, shape.channels, shape.size, shape.size)
    layers: dict[str, tuple[nn.Module, Tensor]] = {
        "dense_nchw": (dense, x),
        "dense_channels_last": (
            shape.make().to(memory_format=last),
            x.clone(memory_format=last),
        ),
        "dense_again": (shape.make(), x.clone()),
        "sparsekern_csr": (SparseConv2d.from_dense(dense, mask=mask, format="csr"), x.clone()),
        "sparsekern_channels_last": (
            SparseConv2d.from_dense(dense, mask=mask, format="csr"),
            x.clone(memory_format=last),
        ),
    }
    rival = _sparseprop(dense, mask, x)
    if rival is not None:
        layers["sparseprop"] = (rival, x.clone())
    grad = torch.randn(dense(x).shape)
    forward = {name: forward_call(layer, inputs) for name, (layer, inputs) in layers.items()}
    both = {
        name: forward_backward_call(
            layer, inputs, grad.to(memory_format=last) if "channels_last" in name else grad
        )
        for name, (layer, inputs) in layers.items()
    }
    return {
        "forward": interleave(forward, budget_s),
        "forward_backward": interleave(both, budget_s),
    }


def _sparseprop(dense: nn.Conv2d, mask: Tensor, x: Tensor) -> nn.Module | None:
    """The better of sparseprop's two kernels for this layer, as its authors choose it: by timing.
    None where it is not installed."""
    try:
        layers = [rivals.sparseprop_conv2d(dense, mask, over_batch) for over_batch in (False, True)]
    except ImportError:
        return None
    grad = torch.randn_like(dense(x))
    seconds = []
    for layer in layers:
        run = forward_backward_call(layer, x, grad)
        run()
        before = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - before)
    return layers[seconds[1] < seconds[0]]


def _row(case: Case, which: str, name: str, times: Times, dense: Times) -> dict[str, Any]:
    shape, density = case
    passes = 1 if which == "forward" else 3
    pixels = BATCH * (shape.size // shape.stride) ** 2
    weights = shape.channels * shape.out_channels * shape.kernel**2
    useful = 2 * passes * pixels * weights * (1.0 if name.startswith("dense") else density)
    return {
        "suite": "conv2d",
        "op": "conv2d",
        "variant": name,
        "pass": which,
        "shape": str(shape),
        "main": shape in MAIN,
        "batch": BATCH,
        "pattern": "unstructured",
        "density": density,
        "dtype": "float32",
        **times.row(),
        "useful_gflops": round(useful / times.p50 / 1e9, 2),
        "speedup_over_dense": round(dense.p50 / times.p50, 4),
    }


def _table(results: dict[Case, dict[str, dict[str, Times]]], which: str) -> Table:
    """Speed-ups over the better dense layout, geometric means of the main shapes below them."""
    names = list(next(iter(results.values()))[which])
    title = f"Conv2d, batch {BATCH}, {which.replace('_', ' + ')}: speed-up over the better dense"
    table = Table(title=title)
    for heading in ("shape", "density", "dense ms", *names):
        table.add_column(heading, justify="right")
    for (shape, density), both in results.items():
        times = both[which]
        best = _best_dense(times)
        cells = [f"{best.p50 / times[name].p50:.2f}" for name in names]
        table.add_row(str(shape), f"{density:.2f}", f"{best.p50 * 1e3:.2f}", *cells)
    table.add_section()
    for density in DENSITIES:
        chosen = [results[shape, density][which] for shape in MAIN]
        means = [geomean([_best_dense(t).p50 / t[name].p50 for t in chosen]) for name in names]
        table.add_row(
            "geometric mean of 3x3", f"{density:.2f}", "", *(f"{mean:.2f}" for mean in means)
        )
    return table
