"""The command line, through typer's runner and as a real process."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

import sparsekern
from sparsekern import cli
from sparsekern.ops import OPS
from sparsekern.testing import devices
from sparsekern.train import run as run_module
from sparsekern.train.recipe_file import bundled_recipes
from sparsekern.train.run import Training
from tests.train.conftest import TINY, assert_same_training


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "TIMING_SECONDS", 0.0)
    monkeypatch.setattr(run_module, "WIDTH_SECONDS", 0.0)
    monkeypatch.setenv("COLUMNS", "100")
    torch.set_num_threads(1)


def _invoke(*args: object) -> Result:
    return CliRunner().invoke(cli.app, [str(arg) for arg in args])


def _sets(*changes: str) -> list[str]:
    return [word for change in (*TINY, *changes) for word in ("--set", change)]


def _train(runs: Path, *args: object) -> Result:
    return _invoke("train", "digits-static", *_sets("epochs=2"), "--runs", runs, *args)


def test_version():
    result = _invoke("--version")
    assert result.exit_code == 0
    assert result.stdout == f"sparsekern {sparsekern.__version__}\n"


def test_help_lists_the_commands():
    result = _invoke("--help")
    assert result.exit_code == 0
    for command in ("train", "report", "recipes", "bench", "info"):
        assert command in result.stdout


def test_train_then_report(tmp_path: Path):
    result = _train(tmp_path)
    assert result.exit_code == 0, result.output
    folder = tmp_path / "digits-static"
    assert f"The run is in {folder}" in result.stdout
    for words in ("sparse, seed 0", "small dense, seed 0", "speed-up", "Memory of the prunable"):
        assert words in result.stdout
    (folder / "report.png").unlink()
    for run in (folder, "digits-static"):
        again = _invoke("report", run, "--runs", tmp_path)
        assert again.exit_code == 0, again.output
        table = result.stdout[result.stdout.index("Test accuracy") :].split("\nThe run is")[0]
        assert table in again.stdout
    assert (folder / "report.png").exists()


def test_train_options(tmp_path: Path):
    result = _train(tmp_path, "--seeds", 2, "--epochs", 1, "--name", "mine")
    assert result.exit_code == 0, result.output
    assert "sparse, seed 1" in result.stdout
    assert "mean of 2 seeds" in result.stdout
    assert len((tmp_path / "mine" / "metrics.jsonl").read_text().splitlines()) == 6
    assert _train(tmp_path, "--seeds", 2, "--epochs", 1, "--name", "mine").exit_code == 0
    assert (tmp_path / "mine-2" / "summary.json").exists()
    assert _train(tmp_path, "--epochs", 1, "--name", "mine", "--fresh").exit_code == 0
    assert len((tmp_path / "mine" / "metrics.jsonl").read_text().splitlines()) == 3


def test_interrupt_then_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def interrupt(self: Training) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Training, "_report", interrupt)
        result = _train(tmp_path)
    assert result.exit_code == 130
    assert "Stopped. The same command goes on from the newest checkpoint." in result.stderr
    result = _train(tmp_path)
    assert result.exit_code == 0
    assert "Going on with the unfinished run in" in result.stdout


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (
            ("train", "digits-rigel"),
            f"Expected recipe to be one of {', '.join(bundled_recipes())} or ",
        ),
        (("train", "digits-rigl", "--set", "a"), "Expected --set to be key=value with dotted keys"),
        (("train", "digits-rigl", "--seeds", "0"), "Expected seeds to be above 0. Got 0."),
        (("train", "digits-rigl", "--epochs", "0"), "Expected epochs to be above 0. Got 0."),
        (("train", "digits-rigl", "--name", "a/b"), "Expected --name to consist of letters, "),
        (
            ("train", "digits-rigl", "--set", "method.densty=1"),
            "Expected keys of method to be among name, density, ",
        ),
        (("report", "nothing"), "Expected RUN to be a folder, here or in runs. Got 'nothing'."),
    ],
)
def test_user_errors_are_one_sentence(
    args: tuple[str, ...], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    result = _invoke(*args)
    assert result.exit_code == 2
    assert result.stdout.strip() == ""
    assert result.stderr.startswith(sentence)
    assert result.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_square_brackets_of_a_sentence_are_shown():
    result = _invoke("train", "digits-rigl", "--set", "method.density=3")
    assert result.stderr == "Expected method.density to be in [0, 1]. Got 3.0.\n"


@pytest.mark.parametrize("place", ["front", "end"])
def test_traceback(place: str):
    args = ("train", "nothing")
    args = ("--traceback", *args) if place == "front" else (*args, "--traceback")
    result = _invoke(*args)
    assert isinstance(result.exception, ValueError)


@pytest.mark.parametrize("place", ["runs", "runs/digits-static/checkpoints"])
def test_files_where_folders_should_be(tmp_path: Path, place: str):
    if place != "runs":
        assert _train(tmp_path / "runs").exit_code == 0
        shutil.rmtree(tmp_path / place)
        (tmp_path / "runs" / "digits-static" / "summary.json").unlink()
        (tmp_path / "runs" / "digits-static" / "metrics.jsonl").unlink()
    (tmp_path / place).write_text("a file")
    result = _train(tmp_path / "runs")
    assert result.exit_code == 2
    assert result.stderr.startswith(f"Expected {tmp_path / place}")
    assert result.stderr.endswith(" to be readable and writable. Got: Not a directory.\n")
    assert result.stderr.count("\n") == 1


def test_report_without_metrics(tmp_path: Path):
    assert _train(tmp_path).exit_code == 0
    (tmp_path / "digits-static" / "metrics.jsonl").unlink()
    result = _invoke("report", "digits-static", "--runs", str(tmp_path))
    assert result.exit_code == 2
    assert "metrics.jsonl to have rows of " in result.stderr


def test_recipes():
    result = _invoke("recipes")
    assert result.exit_code == 0
    for name in bundled_recipes():
        assert name in result.stdout
    assert "the main job" in result.stdout


def test_info():
    result = _invoke("info")
    assert result.exit_code == 0
    found = devices()
    gpus = "cuda:0" if len(found) > 1 else "CUDA devices"
    libraries = ("native library", "CUDA library", "Triton", gpus)
    for words in (sparsekern.__version__, torch.__version__, *libraries, "threads", *OPS):
        assert words in result.stdout
    assert result.stdout.count("picks it") == len(OPS) * len(found)


def test_bench_runs_the_suite_of_the_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "run.py").write_text("import sys; sys.exit(len(sys.argv))")
    monkeypatch.setattr(sparsekern, "__file__", str(tmp_path / "sparsekern" / "__init__.py"))
    assert _invoke("bench", "linear").exit_code == 2
    assert _invoke("bench", "linear", "--quick", "more").exit_code == 4


def test_bench_without_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sparsekern, "__file__", str(tmp_path / "sparsekern" / "__init__.py"))
    result = _invoke("bench", "linear")
    assert result.exit_code == 2
    assert result.stderr == (
        "Expected a source checkout with a bench folder, installed by `pip install -e .`. "
        f"Got {tmp_path}.\n"
    )


def test_a_real_process_killed_and_started_again(tmp_path: Path):
    changes = _sets("epochs=60", "baselines={dense: false, small_dense: false}")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def command(runs: str) -> list[str]:
        main = [sys.executable, "-c", "from sparsekern.cli import main; main()"]
        return [*main, "train", "digits-rigl", *changes, "--runs", str(tmp_path / runs)]

    process = subprocess.Popen(command("cut"), env=environment, stdout=subprocess.DEVNULL)
    checkpoints = tmp_path / "cut" / "digits-rigl" / "checkpoints" / "sparse-seed0"
    deadline = time.monotonic() + 100
    while not list(checkpoints.glob("step-*")) and time.monotonic() < deadline:
        time.sleep(0.005)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    for runs in ("cut", "whole"):
        done = subprocess.run(
            command(runs), env=environment, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stderr
        assert ("Going on with the unfinished run" in done.stdout) == (runs == "cut")
    cut, whole = (tmp_path / runs / "digits-rigl" for runs in ("cut", "whole"))
    assert_same_training(*(run / "checkpoints" / "sparse-seed0" for run in (cut, whole)))
    assert (cut / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
