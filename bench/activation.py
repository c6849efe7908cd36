"""Suite `activation`: a sparse layer and the activation behind it, in two calls and fused.

Calls of 20 us take 1 to 4 us longer behind one that holds two results at once, as ReLU does out of
place: the layer alone runs between the two forms, so that neither is measured behind such a call.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from bench.record import Recorder
from bench.timing import Times, forward_backward_call, forward_call, interleave
from sparsekern.nn import SparseConv2d, SparseLayer, SparseLinear, fuse_activations

LINEAR = (  # batch, in, out
    *((128, 1024, 1024), (512, 2048, 2048), (896, 768, 3072)),
    *((1, 1024, 1024), (8, 1024, 1024)),
)
CONV2D = (  # batch, channels in and out, height and width, kernel
    *((128, 64, 32, 3), (128, 128, 16, 3), (128, 256, 8, 3), (128, 256, 8, 1)),
    *((1, 64, 32, 3), (8, 64, 32, 3)),
)
DENSITIES = (0.1, 0.05, 0.01)
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "relu_in_place": lambda: nn.ReLU(inplace=True),
    "gelu": nn.GELU,
    "gelu_tanh": lambda: nn.GELU(approximate="tanh"),
}
LEAST_TRAINED = 32  # batches below are inference: the forward pass alone


@dataclass(frozen=True)
class Case:
    op: str
    shape: tuple[int, ...]
    density: float

    def __str__(self) -> str:
        if self.op == "linear":
            return "({}, {} -> {})".format(*self.shape)
        batch, channels, size, kernel = self.shape
        return f"({batch}, {channels}, {size}x{size}), {kernel}x{kernel}"

    @property
    def passes(self) -> tuple[str, ...]:
        trained = self.shape[0] >= LEAST_TRAINED
        return ("forward", "forward_backward") if trained else ("forward",)

    def layer(self) -> SparseLayer:
        if self.op == "linear":
            return SparseLinear(*self.shape[1:], density=self.density, format="csr")
        _, channels, _, kernel = self.shape
        dense = nn.Conv2d(channels, channels, kernel, padding=kernel // 2)
        return SparseConv2d.from_dense(dense, self.density, format="csr")

    def input(self) -> Tensor:
        if self.op == "linear":
            return torch.randn(self.shape[:2])
        batch, channels, size, _ = self.shape
        return torch.randn(batch, channels, size, size)


def cases() -> Iterator[Case]:
    for op, shapes in (("linear", LINEAR), ("conv2d", CONV2D)):
        for shape in shapes:
            for density in DENSITIES:
                yield Case(op, shape, density)


def contenders(case: Case, activation: str) -> dict[str, nn.Module]:
    """The layer alone, and with an activation in two calls and fused, all of one weight."""
    torch.manual_seed(0)
    layer = case.layer()
    two_calls = nn.Sequential(layer, ACTIVATIONS[activation]())
    fused = copy.copy(two_calls)
    fuse_activations(fused)
    return {activation: two_calls, "none": nn.Sequential(layer), f"{activation}_fused": fused}


def run(recorder: Recorder, console: Console, budget_s: float) -> None:
    """Measures every case; ``budget_s`` is for all of them together."""
    todo = [(c, which, name) for c in cases() for which in c.passes for name in ACTIVATIONS]
    results: dict[tuple[Case, str], dict[str, Times]] = {}
    for case, which, activation in todo:
        models = contenders(case, activation)
        x = case.input()
        grad = torch.randn_like(models["none"](x))
        if which == "forward":
            calls = {name: forward_call(model, x) for name, model in models.items()}
        else:
            calls = {name: forward_backward_call(m, x, grad) for name, m in models.items()}
        found = interleave(calls, budget_s / len(todo))
        for name, times in found.items():
            recorder.write(**_row(case, which, name, times, found))
        results.setdefault((case, which), {}).update(found)
    console.print(_table(results))


def _row(case: Case, which: str, name: str, times: Times, all_: dict[str, Times]) -> dict[str, Any]:
    return {
        "suite": "activation",
        "op": case.op,
        "variant": name,
        "pass": which,
        "shape": list(case.shape),
        "pattern": "unstructured",
        "density": case.density,
        "dtype": "float32",
        **times.row(),
        "over_no_activation": round(times.p50 / all_["none"].p50, 4),
        "speedup_over_two_calls": round(all_[name.removesuffix("_fused")].p50 / times.p50, 4),
    }


def _table(results: dict[tuple[Case, str], dict[str, Times]]) -> Table:
    table = Table(title="A layer and its activation: speed-up of fused over two calls")
    for heading in ("shape", "pass", "density", *ACTIVATIONS):
        table.add_column(heading.replace("_", " "), justify="right")
    for (case, which), times in results.items():
        ratios = [times[name].p50 / times[f"{name}_fused"].p50 for name in ACTIVATIONS]
        cells = [f"{ratio:.2f}" for ratio in ratios]
        table.add_row(str(case), which.replace("_", " + "), f"{case.density:.2f}", *cells)
    return table
