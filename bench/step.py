"""Suite `step`: a whole training step of two small networks, over their dense twins.

Forward, loss, backward, optimiser and zero_grad as in a training loop; the sparse network's mask is
static and its step is a Pruner's. Every Linear layer has the density of the row; norms, attention
itself and the loss run dense and are part of the step.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from bench.linear import DENSITIES
from bench.record import Recorder
from bench.timing import Times, interleave, training_step
from bench.topology import OPTIMIZERS
from sparsekern.prune import Pruner, Static


class Block(nn.Module):
    """A transformer encoder block, norms first: attention of eight heads, then two layers."""

    def __init__(self, width: int, hidden: int, heads: int = 8) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(2)])

    def forward(self, x: Tensor) -> Tensor:
        inner = self.norms[0](x)
        parts = [part(inner) for part in (self.query, self.key, self.value)]
        heads = [part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts]
        attended = F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
        x = x + self.out(attended)
        return x + self.down(F.gelu(self.up(self.norms[1](x))))


def mlp() -> tuple[nn.Module, Tensor, Tensor]:
    """784 to 1024, 1024 and 10; batch 128."""
    sizes = (784, 1024, 1024, 10)
    layers: list[nn.Module] = []
    for fan_in, fan_out in itertools.pairwise(sizes):
        layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1]), torch.randn(128, 784), torch.randn(128, 10)


def transformer() -> tuple[nn.Module, Tensor, Tensor]:
    """One block of width 512 and hidden size 2048; 8 sequences of 64."""
    return Block(512, 2048), torch.randn(8, 64, 512), torch.randn(8, 64, 512)


MODELS = {"mlp": mlp, "transformer": transformer}


@dataclass(frozen=True)
class Case:
    model: str
    optimizer: str
    density: float


def cases() -> Iterator[Case]:
    for model, optimizer, density in itertools.product(MODELS, OPTIMIZERS, DENSITIES):
        yield Case(model, optimizer, density)


def run(recorder: Recorder, console: Console, budget_s: float) -> None:
    """Measures every case; ``budget_s`` is for all of them together."""
    todo = list(cases())
    results: dict[Case, dict[str, Times]] = {}
    for case in todo:
        results[case] = interleave(contenders(case), budget_s / len(todo))
        for name, times in results[case].items():
            recorder.write(**_row(case, name, times, results[case]["dense"]))
    console.print(_table(results))


def contenders(case: Case) -> dict[str, Callable[[], None]]:
    """The step of the dense network, of a second one (noise), and of the sparse one."""
    torch.manual_seed(0)
    model, x, target = MODELS[case.model]()
    sparse = copy.deepcopy(model)
    optimizer = OPTIMIZERS[case.optimizer](sparse.parameters())
    method = Static(density=case.density, distribution="uniform")
    pruner = Pruner(sparse, optimizer, method, total_steps=10**9, format="csr")
    steps = {
        name: _dense_step(copy.deepcopy(model), case.optimizer, x, target)
        for name in ("dense", "dense_again")
    }
    step = training_step(lambda: F.mse_loss(sparse(x), target), optimizer, pruner.step)
    return {**steps, "sparsekern_csr": step}


def _dense_step(model: nn.Module, optimizer: str, x: Tensor, target: Tensor) -> Callable[[], None]:
    built = OPTIMIZERS[optimizer](model.parameters())
    return training_step(lambda: F.mse_loss(model(x), target), built)


def _row(case: Case, name: str, times: Times, dense: Times) -> dict[str, Any]:
    return {
        "suite": "step",
        "op": case.model,
        "variant": name,
        "pass": case.optimizer,
        "pattern": "unstructured",
        "density": case.density,
        "dtype": "float32",
        **times.row(),
        "speedup_over_dense": round(dense.p50 / times.p50, 4),
    }


def _table(results: dict[Case, dict[str, Times]]) -> Table:
    names = ("sparsekern_csr", "dense_again")
    table = Table(title="Whole training step: speed-up over the dense twin")
    for heading in ("model", "optimizer", "density", "dense ms", "sparse ms", *names):
        table.add_column(heading, justify="right")
    for case, times in results.items():
        dense = times["dense"].p50
        milliseconds = [f"{1e3 * times[name].p50:.2f}" for name in ("dense", names[0])]
        ratios = [f"{dense / times[name].p50:.2f}" for name in names]
        table.add_row(case.model, case.optimizer, f"{case.density:.2f}", *milliseconds, *ratios)
    return table
