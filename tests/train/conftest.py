"""A recipe that trains in a second, and what tests compare."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sparsekern.data import Dataset
from sparsekern.prune import METHODS
from sparsekern.train import run as run_module
from sparsekern.train.callbacks import Callback
from sparsekern.train.checkpoint import Checkpoints, Progress
from sparsekern.train.loop import train
from sparsekern.train.metrics import MetricsLog, Row
from sparsekern.train.network import Network, build_network
from sparsekern.train.recipe import Recipe
from sparsekern.train.recipe_file import load_recipe

TINY = (
    "model.hidden=[96, 64]",
    "method.density=0.2",
    "optimizer.lr=0.2",
    "epochs=12",
    "checkpoint_every=4",
)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Small networks are no faster on two, and much slower where the cores are taken."""
    torch.set_num_threads(1)


@pytest.fixture
def tiny() -> Callable[..., Recipe]:
    """``tiny("gmp", "epochs=3")``: the bundled recipe of a method, made small."""

    def make(method: str = "rigl", *overrides: str) -> Recipe:
        fields = {field.name for field in dataclasses.fields(METHODS[method])}
        often = ["method.update_every=9"] if "update_every" in fields else []
        return load_recipe(f"digits-{method}", [*TINY, *often, *overrides])

    return make


@pytest.fixture
def quick_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Step times from as few steps as possible: tests do not look at them."""
    monkeypatch.setattr(run_module, "TIMING_SECONDS", 0.0)
    monkeypatch.setattr(run_module, "WIDTH_SECONDS", 0.0)


def same(a: Any, b: Any) -> bool:
    """Bitwise equality of nested state."""
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    return bool(a == b)


def assert_same_training(folder: Path, other: Path) -> None:
    """The newest checkpoints of two folders hold the same bits."""
    ends = [max(place.glob("step-*")) for place in (folder, other)]
    assert ends[0].name == ends[1].name
    weights = [(end / "model.safetensors").read_bytes() for end in ends]
    assert weights[0] == weights[1]
    states = [torch.load(end / "state.pt", weights_only=True) for end in ends]
    assert same(*states)


class Stop(Callback):
    """Interrupts the training after an epoch."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def epoch_ended(self, row: Row) -> None:
        if row["epoch"] == self.epoch:
            raise KeyboardInterrupt


def train_until(
    recipe: Recipe,
    folder: Path,
    name: str = "sparse",
    stop: int = 0,
    seed: int = 0,
    dataset: Dataset | None = None,
) -> tuple[Network, Progress | None]:
    """Trains a fresh network, or goes on with it, until the end or the epoch ``stop``."""
    dataset = dataset or recipe.data.load()
    network = build_network(recipe, dataset, name, seed)
    try:
        progress = train(
            network,
            dataset,
            recipe,
            log=MetricsLog(folder / "metrics.jsonl"),
            checkpoints=Checkpoints(folder / "checkpoints", recipe.digest),
            callback=Stop(stop),
        )
    except KeyboardInterrupt:
        return network, None
    return network, progress
