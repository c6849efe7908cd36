"""Suite `networks`: training steps of whole networks, over the dense network in its better layout.

Forward, loss, backward, SGD with momentum and zero_grad. Static masks of one density in every layer
but the first convolution and the last layer, which stay dense, as everything else does (norms,
attention, pooling). Images are CIFAR's in shape, made up. The dense network runs in NCHW and, where
there are convolutions, in channels_last, and so does the sparse one; each counts in its better
layout.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from bench.record import Recorder
from bench.timing import Times, interleave, training_step
from bench.topology import OPTIMIZERS
from sparsekern.models import VGG, ResNet, ViT
from sparsekern.prune import Pruner, Static

DENSITIES = (0.1, 0.05)
IMAGE = (3, 32, 32)
DENSE = ("dense_nchw", "dense_channels_last")
SPARSE = ("sparsekern_csr", "sparsekern_channels_last")


@dataclass(frozen=True)
class Case:
    """A network and the images or vectors of one step."""

    make: Callable[[], nn.Module]
    batch: int
    input_shape: tuple[int, ...] = IMAGE

    @property
    def has_layouts(self) -> bool:
        """Whether channels_last is worth a try: images that go through many convolutions."""
        return self.make is not vit and len(self.input_shape) == 3


def mlp() -> nn.Module:
    """784 to four hidden layers of 1024, and 10 outputs."""
    sizes = (784, *[1024] * 4)
    parts: list[nn.Module] = []
    for fan_in, fan_out in itertools.pairwise(sizes):
        parts += [nn.Linear(fan_in, fan_out), nn.ReLU()]
    return nn.Sequential(*parts, nn.Linear(1024, 10))


def vit() -> nn.Module:
    """ViT-S: 12 blocks of width 384, 65 tokens."""
    model = ViT(features=384, depth=12, heads=6, patch=4, dropout=0.0)
    return model.network(IMAGE, 10, None)


NETWORKS = {
    "mlp_1024x4": Case(mlp, 128, (784,)),
    "resnet18": Case(lambda: ResNet(depth=18).network(IMAGE, 10, None), 128),
    "resnet20": Case(lambda: ResNet(depth=20).network(IMAGE, 10, None), 128),
    "vgg16": Case(lambda: VGG(depth=16).network(IMAGE, 10, None), 128),
    "vit_s": Case(vit, 64),
}


def run(recorder: Recorder, console: Console, budget_s: float) -> None:
    """Measures every network; ``budget_s`` is for all of them, at least seven rounds each."""
    table = Table(title="Training steps of whole networks, over dense in its better layout")
    for heading in ("network", "density", "dense ms", "sparse ms", "speed-up", "layouts' ms"):
        table.add_column(heading, justify="right")
    for name, case in NETWORKS.items():
        times = interleave(contenders(case), budget_s / len(NETWORKS))
        for density in DENSITIES:
            row = _row(name, case, density, times)
            recorder.write(**row)
            layouts = ", ".join(f"{key} {ms:.1f}" for key, ms in row["p50_ms_by_layout"].items())
            cells = (row["dense_p50_ms"], row["p50_ms"], row["speedup_over_dense"])
            table.add_row(name, f"{density:.2f}", *(f"{cell:.2f}" for cell in cells), layouts)
    console.print(table)


def contenders(case: Case) -> dict[str, Callable[[], None]]:
    """Steps of the dense network in its layouts, and of the sparse one for every density."""
    torch.manual_seed(0)
    model = case.make()
    x = torch.randn(case.batch, *case.input_shape)
    target = torch.randint(10, (case.batch,))
    steps = {
        "dense_nchw": _dense_step(copy.deepcopy(model), x, target),
        "dense_again": _dense_step(copy.deepcopy(model), x, target),
    }
    last = torch.channels_last
    if case.has_layouts:
        turned = copy.deepcopy(model).to(memory_format=last)
        steps[DENSE[1]] = _dense_step(turned, x.to(memory_format=last), target)
    for density in DENSITIES:
        steps[f"{SPARSE[0]}_{density}"] = _sparse_step(copy.deepcopy(model), x, target, density)
        if case.has_layouts:
            turned = copy.deepcopy(model).to(memory_format=last)
            step = _sparse_step(turned, x.to(memory_format=last), target, density)
            steps[f"{SPARSE[1]}_{density}"] = step
    return steps


def _dense_step(model: nn.Module, x: Tensor, target: Tensor) -> Callable[[], None]:
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    return training_step(lambda: F.cross_entropy(model(x), target), optimizer)


def _sparse_step(model: nn.Module, x: Tensor, target: Tensor, density: float) -> Callable[[], None]:
    layers = [n for n, each in model.named_modules() if isinstance(each, (nn.Linear, nn.Conv2d))]
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    method = Static(density=density, distribution="uniform")
    first = layers[:1] if isinstance(model.get_submodule(layers[0]), nn.Conv2d) else []
    pruner = Pruner(
        model,
        optimizer,
        method,
        total_steps=10**9,
        exclude=[*first, layers[-1]],
        format="csr",
    )
    return training_step(lambda: F.cross_entropy(model(x), target), optimizer, pruner.step)


def _row(name: str, case: Case, density: float, times: dict[str, Times]) -> dict[str, Any]:
    dense = min((times[each] for each in DENSE if each in times), key=lambda each: each.p50)
    own = {each: times.get(f"{each}_{density}") for each in SPARSE}
    layouts = {each: found for each, found in own.items() if found is not None}
    best = min(layouts.values(), key=lambda each: each.p50)
    named = {each: times[each] for each in (*DENSE, "dense_again") if each in times} | layouts
    return {
        "suite": "networks",
        "op": name,
        "variant": "sparsekern_csr",
        "pass": "sgd",
        "shape": [case.batch, *case.input_shape],
        "pattern": "unstructured",
        "density": density,
        "dtype": "float32",
        **best.row(),
        "dense_p50_ms": round(dense.p50 * 1e3, 5),
        "p50_ms_by_layout": {each: round(t.p50 * 1e3, 5) for each, t in named.items()},
        "speedup_over_dense": round(dense.p50 / best.p50, 4),
    }
