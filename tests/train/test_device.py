"""Devices and precisions of a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sparsekern.train.device import find_device
from sparsekern.train.metrics import MetricsLog
from sparsekern.train.recipe import Recipe
from sparsekern.train.recipe_file import load_recipe
from tests.train.conftest import assert_same_training, train_until

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.usefixtures("two_gpus")
def test_auto_is_the_gpu_where_there_is_one() -> None:
    assert find_device("auto") == torch.device("cuda")
    assert find_device("cpu") == torch.device("cpu")
    assert find_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(ValueError, match=r"which has 2 CUDA devices\. Got 'cuda:2'\."):
        find_device("cuda:2")


@pytest.mark.usefixtures("no_gpu")
def test_without_a_gpu() -> None:
    assert find_device("auto") == torch.device("cpu")
    with pytest.raises(ValueError, match=r"which has 0 CUDA devices\. Got 'cuda'\."):
        find_device("cuda")


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "meta", ""])
def test_other_names(name: str) -> None:
    sentence = "Expected device to be auto, cpu, cuda or cuda:<number>. Got"
    with pytest.raises(ValueError, match=sentence):
        load_recipe("digits-rigl", [f"device='{name}'"])


def test_other_precisions() -> None:
    with pytest.raises(ValueError, match="Expected precision to be one of float32, bfloat16, "):
        load_recipe("digits-rigl", ["precision=float8"])


@pytest.mark.usefixtures("two_gpus")
def test_an_interrupted_run_remembers_its_device(tiny: Callable[..., Recipe]) -> None:
    """What "auto" meant is written down: another machine does not go on with another storage."""
    recipe = tiny("rigl")
    there = recipe.on_this_machine()
    assert there.device == "cuda"
    assert there.on_this_machine() == there
    assert there.digest != recipe.digest


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_trains_and_resumes_in_every_precision(
    tiny: Callable[..., Recipe], tmp_path: Path, precision: str, device: str
) -> None:
    """Weights stay float32; a resumed training has the bits of one that was not interrupted."""
    recipe = tiny(
        "rigl", f"precision={precision}", f"device={device}", "epochs=8", "checkpoint_every=4"
    )
    for folder, stops in (("whole", [0]), ("cut", [4, 0])):
        (tmp_path / folder).mkdir()
        for stop in stops:
            network, _ = train_until(recipe, tmp_path / folder, stop=stop)
    assert network.device.type == device
    assert all(p.dtype == torch.float32 for p in network.model.parameters())
    assert network.scaler.is_enabled() == (precision == "float16")
    rows = MetricsLog(tmp_path / "whole" / "metrics.jsonl").rows()
    assert rows[-1]["test_accuracy"] > 0.7
    assert_same_training(tmp_path / "whole" / "checkpoints", tmp_path / "cut" / "checkpoints")
