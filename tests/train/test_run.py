"""A whole run: what it writes, and that a kill changes nothing."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sparsekern.train.callbacks import Callback
from sparsekern.train.metrics import MetricsLog, Row
from sparsekern.train.recipe import Recipe
from sparsekern.train.recipe_file import load_recipe, save_recipe
from sparsekern.train.run import run
from sparsekern.train.summary import read_summary
from tests.train.conftest import assert_same_training

NETWORK_KEYS = {
    "accuracy",
    "accuracy_std",
    "step_ms",
    "forward_ms",
    "backward_ms",
    "update_ms",
    "topology_ms",
    "weight_bytes",
    "index_bytes",
    "state_bytes",
    "density",
    "train_s",
}
ALONE = ("baselines={dense: false, small_dense: false}",)

KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from sparsekern.train.callbacks import Callback
from sparsekern.train.recipe_file import load_recipe
from sparsekern.train.run import run

class Kill(Callback):
    def epoch_ended(self, row):
        if row["epoch"] == 7:
            os.kill(os.getpid(), signal.SIGKILL)

torch.set_num_threads(1)
run(load_recipe(sys.argv[1]), Path(sys.argv[2]), callback=Kill())
"""


class Record(Callback):
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.events: list[tuple[object, ...]] = []

    def said(self, line: str) -> None:
        self.events.append(("said", line))

    def started(self, network: str, seed: int, epochs: int, done: int) -> None:
        self.events.append(("started", network, seed, epochs, done))

    def measuring(self, what: str) -> None:
        self.events.append(("measuring", what))

    def ended(self, network: str, seed: int) -> None:
        self.events.append(("ended", network, seed))


class Interrupt(Callback):
    """Interrupts the run when a network begins, or while it is being measured."""

    def __init__(self, at: str) -> None:
        self.at = at

    def started(self, network: str, seed: int, epochs: int, done: int) -> None:
        self._look(network)

    def measuring(self, what: str) -> None:
        self._look(what)

    def _look(self, what: str) -> None:
        if what == self.at:
            raise KeyboardInterrupt


@pytest.mark.usefixtures("quick_timing")
def test_what_a_run_writes(tiny: Callable[..., Recipe], tmp_path: Path):
    recipe = tiny("rigl", "seeds=2", "epochs=6")
    record = Record()
    folder = run(recipe, tmp_path, callback=record)
    assert folder == tmp_path / "digits-rigl"
    assert {e.name for e in folder.iterdir() if e.name != ".lock"} == {
        "checkpoints",
        "metrics.jsonl",
        "recipe.yaml",
        "report.png",
        "summary.json",
    }
    names = {f"{n}-seed{s}" for n in ("dense", "sparse", "small_dense") for s in (0, 1)}
    assert {e.name for e in (folder / "checkpoints").iterdir()} == names
    for name in names:
        assert [e.name for e in (folder / "checkpoints" / name).iterdir()] == ["step-00000042"]
    assert (folder / "report.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"

    order = [("dense", 0), ("sparse", 0), ("dense", 1), ("sparse", 1)]
    order += [("small_dense", 0), ("small_dense", 1)]
    rows = MetricsLog(folder / "metrics.jsonl").rows()
    assert [(r["network"], r["seed"], r["epoch"]) for r in rows] == [
        (network, seed, epoch) for network, seed in order for epoch in range(1, 7)
    ]
    assert set(rows[0]) == set(Row.__annotations__)
    assert [e[1:3] for e in record.events if e[0] == "started"] == order

    resolved = load_recipe(folder / "recipe.yaml")
    width = resolved.baselines.small_dense_width
    assert width is not None
    assert resolved == recipe.on_this_machine().with_small_dense_width(width)


@pytest.mark.usefixtures("quick_timing")
def test_summary(tiny: Callable[..., Recipe], tmp_path: Path):
    folder = run(tiny("rigl", "seeds=2", "epochs=6"), tmp_path)
    summary = read_summary(folder)
    rows = MetricsLog(folder / "metrics.jsonl").rows()
    for name in ("dense", "sparse", "small_dense"):
        network = summary[name]
        assert set(network) >= NETWORK_KEYS
        ends = [r["test_accuracy"] for r in rows if r["network"] == name and r["epoch"] == 6]
        assert network["accuracy"] == pytest.approx(sum(ends) / 2)
        assert network["accuracy_std"] == pytest.approx(abs(ends[0] - ends[1]) / math.sqrt(2))
        parts = network["forward_ms"] + network["backward_ms"] + network["update_ms"]
        assert network["step_ms"] == pytest.approx(parts)
        assert network["train_s"] > 0
    dense, sparse = summary["dense"], summary["sparse"]
    numel = 64 * 96 + 96 * 64 + 64 * 10
    assert dense["weight_bytes"] == dense["state_bytes"] == 4 * numel
    assert dense["index_bytes"] == 0
    assert dense["density"] == 1.0
    assert sparse["density"] == pytest.approx(0.2, abs=1e-4)
    assert 0 < sparse["weight_bytes"] == sparse["state_bytes"] < 4 * numel
    assert sparse["index_bytes"] > 0
    assert summary["speedup"] == pytest.approx(dense["step_ms"] / sparse["step_ms"])
    sizes = [sum(n[f"{p}_bytes"] for p in ("weight", "index", "state")) for n in (sparse, dense)]
    assert summary["bytes_ratio"] == pytest.approx(sizes[0] / sizes[1])
    assert summary["seeds"] == [0, 1]
    assert set(summary["versions"]) == {
        "sparsekern",
        "torch",
        "python",
        "threads",
        "isa",
        "gpu",
        "machine",
    }


@pytest.mark.usefixtures("quick_timing")
def test_layers_that_stay_dense_are_counted(tiny: Callable[..., Recipe], tmp_path: Path):
    recipe = tiny("static", "model.hidden=[512, 64]", "method.density=0.1", "epochs=1")
    summary = read_summary(run(recipe, tmp_path))
    # ERK leaves the output layer, 64 to 10, at density 1.
    kept = round(0.1 * (64 * 512 + 512 * 64 + 64 * 10))
    assert summary["sparse"]["weight_bytes"] >= 4 * kept
    assert summary["dense"]["weight_bytes"] == 4 * (64 * 512 + 512 * 64 + 64 * 10)


@pytest.mark.usefixtures("quick_timing")
def test_without_baselines(tiny: Callable[..., Recipe], tmp_path: Path):
    summary = read_summary(run(tiny("static", "epochs=1", *ALONE), tmp_path))
    assert "dense" not in summary
    assert "small_dense" not in summary
    assert summary["speedup"] is None
    assert summary["bytes_ratio"] is None


@pytest.mark.usefixtures("quick_timing")
def test_a_given_width_is_kept(tiny: Callable[..., Recipe], tmp_path: Path):
    record = Record()
    recipe = tiny("static", "epochs=1", "baselines.small_dense_width=0.25")
    folder = run(recipe, tmp_path, callback=record)
    assert [e for e in record.events if e[0] == "measuring"] == [("measuring", "the step times")]
    assert load_recipe(folder / "recipe.yaml") == recipe.on_this_machine()
    assert read_summary(folder)["small_dense"]["width"] == 0.25


@pytest.mark.usefixtures("quick_timing")
@pytest.mark.parametrize("at", ["sparse", "small_dense", "the step times"])
def test_an_interrupted_run_goes_on(tiny: Callable[..., Recipe], tmp_path: Path, at: str):
    recipe = tiny("set", "epochs=5")
    with pytest.raises(KeyboardInterrupt):
        run(recipe, tmp_path / "cut", callback=Interrupt(at))
    record = Record()
    folder = run(recipe, tmp_path / "cut", callback=record)
    assert record.events[0] == ("said", f"Going on with the unfinished run in {folder}.")
    assert ("started", "dense", 0, 5, 5) in record.events
    width = load_recipe(folder / "recipe.yaml").baselines.small_dense_width
    whole = run(recipe.with_small_dense_width(width), tmp_path / "whole")
    for network in ("dense-seed0", "sparse-seed0", "small_dense-seed0"):
        assert_same_training(*(f / "checkpoints" / network for f in (folder, whole)))
    assert (folder / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()


@pytest.mark.usefixtures("quick_timing")
@pytest.mark.parametrize("method", ["rigl", "set", "gmp"])
def test_a_killed_run_ends_with_the_same_bits(
    tiny: Callable[..., Recipe], tmp_path: Path, method: str
):
    recipe = tiny(method, *ALONE)
    save_recipe(recipe, tmp_path / "recipe.yaml")
    command = [sys.executable, "-c", KILLED, tmp_path / "recipe.yaml", tmp_path / "cut"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    killed = subprocess.run(command, env=environment, check=False, timeout=120)
    assert killed.returncode == -signal.SIGKILL
    cut = tmp_path / "cut" / recipe.name
    assert not (cut / "summary.json").exists()
    assert len(MetricsLog(cut / "metrics.jsonl").rows()) == 7

    record = Record()
    assert run(recipe, tmp_path / "cut", callback=record) == cut
    assert ("started", "sparse", 0, 12, 4) in record.events
    whole = run(recipe, tmp_path / "whole")
    assert_same_training(*(f / "checkpoints" / "sparse-seed0" for f in (cut, whole)))
    assert (cut / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("batch_size=899", "Expected batch_size to be at most the number of training samples, 898"),
        ("exclude=[hiden*]", "Expected exclude to name modules of the model. Got 'hiden*', "),
        ("format=csr", "Expected format to be auto or masked for gmp"),
    ],
)
def test_what_cannot_work_leaves_no_folder(
    tiny: Callable[..., Recipe], tmp_path: Path, override: str, sentence: str
):
    with pytest.raises(ValueError) as error:
        run(tiny("gmp", override), tmp_path / "runs")
    assert str(error.value).startswith(sentence)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("content", "got"),
    [
        ("{", "no JSON"),
        ("[" * 100_000, "no JSON"),
        ("{}", "one without a usable recipe"),
        ("[]", "one without a usable mapping"),
        (json.dumps({"recipe": "a", "sparse": 1}), "one without a usable sparse"),
    ],
)
def test_damaged_summary(tmp_path: Path, content: str, got: str):
    (tmp_path / "summary.json").write_text(content)
    with pytest.raises(ValueError) as error:
        read_summary(tmp_path)
    path = tmp_path / "summary.json"
    assert str(error.value) == f"Expected {path} to be the summary of a run. Got {got}."


def test_no_summary(tmp_path: Path):
    with pytest.raises(ValueError) as error:
        read_summary(tmp_path)
    assert str(error.value) == (
        f"Expected {tmp_path} to hold a finished run with summary.json. Got none."
    )
