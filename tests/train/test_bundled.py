"""Every bundled recipe starts and takes steps; those that need files say so."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from sparsekern.data import Cifar10, Cifar100
from sparsekern.train import small_dense, timing
from sparsekern.train.checkpoint import Checkpoints
from sparsekern.train.loop import train
from sparsekern.train.metrics import MetricsLog, Row
from sparsekern.train.network import Network, build_network
from sparsekern.train.recipe import Recipe
from sparsekern.train.recipe_file import bundled_recipes, load_recipe
from sparsekern.train.run import run
from sparsekern.train.summary import read_summary

NEED_FILES = ("cifar10-", "cifar100-", "sst2-")
RECIPES = [name for name in bundled_recipes() if not name.startswith(NEED_FILES)]
REAL = [name for name in bundled_recipes() if name.startswith(NEED_FILES)]
# real -> its twin on made-up data of the same shape
TWINS = {name: "synthetic-" + name.partition("-")[2] for name in REAL} | {
    "text-gpt-rigl": "synthetic-gpt-rigl"
}


def _short(name: str) -> Recipe:
    """The recipe with its model and shape of a sample, on few samples and for few steps."""
    changes = ["epochs=1", "batch_size=4"]
    if load_recipe(name).to_dict()["method"].get("update_every"):
        changes.append("method.update_every=2")
    if name.startswith("synthetic-"):
        changes += ["data.train_samples=12", "data.test_samples=4"]
    elif name.startswith("text-"):
        changes += ["data.max_bytes=2000"]
    else:
        changes += ["epochs=2", "batch_size=64", "data.test_fraction=0.9"]
    return load_recipe(name, changes)


def _train(recipe: Recipe, folder: Path, network: Network | None = None) -> list[Row]:
    """The rows of a training of the sparse network."""
    dataset = recipe.data.load()
    network = network or build_network(recipe, dataset, "sparse", 0)
    log, checkpoints = MetricsLog(folder / "metrics.jsonl"), Checkpoints(folder / "c", "")
    train(network, dataset, recipe, log=log, checkpoints=checkpoints)
    return log.rows()


@pytest.mark.parametrize("name", RECIPES)
def test_starts_and_takes_steps(name: str, tmp_path: Path):
    recipe = _short(name)
    dataset = recipe.data.load()
    fresh = build_network(recipe, dataset, "sparse", 0)
    before = dict(fresh.model.named_parameters())
    network = build_network(recipe, dataset, "sparse", 0)
    rows = _train(recipe, tmp_path, network)
    assert rows[-1]["step"] >= 3
    assert rows[-1]["density"] < 0.9
    assert len(network.updates) == 0 or network.updates[0] < rows[-1]["step"]
    for key, value in network.model.named_parameters():
        assert torch.isfinite(value).all()
        assert not torch.equal(value, before.get(key, torch.empty(0))), key  # GMP renames some


@pytest.mark.parametrize("name", REAL)
def test_without_its_files(name: str, tmp_path: Path):
    with pytest.raises(ValueError) as error:
        run(load_recipe(name), tmp_path / "runs")
    assert str(error.value).startswith("Expected data.path to be the folder of ")
    assert "Got nothing: give it with --set data.path=FOLDER" in str(error.value)
    assert not (tmp_path / "runs").exists()


def test_cifar_from_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The real thing on files that hold few images."""
    small = dataclasses.replace(Cifar10.release, train_samples=4, test_samples=4)
    monkeypatch.setattr(Cifar10, "release", small)
    version = small.versions[0]
    for name in (*version.train, version.test):
        records = torch.randint(0, 10, (4, 3073), dtype=torch.uint8)
        (tmp_path / name).write_bytes(records.numpy().tobytes())
    changes = [f"data.path={tmp_path}", "batch_size=5", "epochs=2", "method.update_every=2"]
    rows = _train(load_recipe("cifar10-resnet20-rigl", changes), tmp_path)
    assert rows[-1]["step"] == 8


def test_glue_from_files(tmp_path: Path):
    text = "sentence\tlabel\n" + "good\t1\nbad\t0\n" * 4
    for name in ("train.tsv", "dev.tsv"):
        (tmp_path / name).write_text(text)
    changes = [f"data.path={tmp_path}", "batch_size=4", "epochs=2", "method.update_every=2"]
    rows = _train(load_recipe("sst2-bert-rigl", changes), tmp_path)
    assert rows[-1]["step"] == 4


def test_cifar_100_in_place_of_cifar_10():
    changes = ["data.name=cifar100", "data.path=folder"]
    assert load_recipe("cifar10-resnet20-rigl", changes).data == Cifar100(path="folder")


@pytest.mark.parametrize("name", TWINS)
def test_the_twin_differs_in_data_and_length_alone(name: str):
    own, twin = (load_recipe(each).to_dict() for each in (name, TWINS[name]))
    for key in ("name", "description", "data", "epochs", "baselines"):
        del own[key], twin[key]
    del own["method"]["update_every"], twin["method"]["update_every"]
    assert own == twin


@pytest.mark.parametrize("name", ["digits-resnet20-rigl", "digits-bert-rigl", "digits-cnn-rigl"])
def test_a_narrower_dense_network_is_searched(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(small_dense, "STEPS", 2)
    monkeypatch.setattr(timing, "MINIMUM_ROUNDS", 1)
    recipe = _short(name)
    dataset = recipe.data.load()
    sparse = build_network(recipe, dataset, "sparse", 0)
    half = build_network(recipe, dataset, "small_dense", 0, 0.5)
    whole = build_network(recipe, dataset, "dense", 0)
    sizes = [sum(p.numel() for p in net.model.parameters()) for net in (half, whole)]
    assert 0.2 * sizes[1] < sizes[0] < 0.35 * sizes[1]
    width = small_dense.find_width(recipe, dataset, [timing.Stage(sparse)], 0.0)
    assert small_dense.NARROWEST <= width <= 1.0


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_whole_run(name: str, tmp_path: Path, quick_timing: None):
    """From the data to the report, with the baselines."""
    folder = run(_short(name), tmp_path)
    summary = read_summary(folder)
    assert summary["sparse"]["density"] < 0.9
    assert summary["dense"]["step_ms"] > 0
    assert (folder / "report.png").exists()
