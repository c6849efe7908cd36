"""Checkpoints: complete or not there, and every kind of damage is one sentence."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from sparsekern.data import Dataset
from sparsekern.train import checkpoint as checkpoint_module
from sparsekern.train.checkpoint import Checkpoints, Progress
from sparsekern.train.network import Network, build_network
from sparsekern.train.recipe import Recipe

FILES = {"model.safetensors", "state.pt", "meta.json"}


@pytest.fixture
def recipe(tiny: Callable[..., Recipe]) -> Recipe:
    return tiny()


@pytest.fixture
def dataset(recipe: Recipe) -> Dataset:
    return recipe.data.load()


@pytest.fixture
def network(recipe: Recipe, dataset: Dataset) -> Network:
    return build_network(recipe, dataset, "sparse", 0)


@pytest.fixture
def checkpoints(recipe: Recipe, tmp_path: Path) -> Checkpoints:
    return Checkpoints(tmp_path / "checkpoints", recipe.digest)


def _sentence(checkpoints: Checkpoints, network: Network) -> str:
    with pytest.raises(ValueError) as error:
        checkpoints.restore(network)
    return str(error.value)


def test_none_yet(checkpoints: Checkpoints, network: Network):
    assert checkpoints.newest() is None
    assert checkpoints.restore(network) == Progress()


def test_save_and_restore(
    checkpoints: Checkpoints, network: Network, recipe: Recipe, dataset: Dataset
):
    with torch.no_grad():
        network.model.get_submodule("hidden1").format.parameter.add_(1.0)
    torch.manual_seed(99)
    saved = Progress(epoch=3, step=21, seconds=1.5)
    path = checkpoints.save(network, saved)
    assert path.name == "step-00000021"
    assert {file.name for file in path.iterdir()} == FILES
    numbers = torch.rand(3)
    fresh = build_network(recipe, dataset, "sparse", 0)
    assert checkpoints.restore(fresh) == saved
    assert torch.equal(torch.rand(3), numbers)
    for key, value in network.model.state_dict().items():
        assert torch.equal(fresh.model.state_dict()[key], value)


def test_only_the_newest_stays(checkpoints: Checkpoints, network: Network):
    for step in (7, 14, 100000000):
        checkpoints.save(network, Progress(1, step, 0.0))
        assert [path.name for path in checkpoints.folder.iterdir()] == [f"step-{step:08d}"]
    assert checkpoints.newest() == checkpoints.folder / "step-100000000"


def test_the_newest_of_several_counts(checkpoints: Checkpoints, network: Network):
    for step in (9, 10):
        path = checkpoints.save(network, Progress(1, step, 0.0))
        path.rename(path.with_name(f"kept-{step}"))
    for step in (9, 10):
        (checkpoints.folder / f"kept-{step}").rename(checkpoints.folder / f"step-{step:08d}")
    assert checkpoints.restore(network).step == 10


@pytest.mark.parametrize("failing", ["rename", "save_file", "save"])
def test_a_failed_write_loses_nothing(
    checkpoints: Checkpoints,
    network: Network,
    monkeypatch: pytest.MonkeyPatch,
    failing: str,
):
    checkpoints.save(network, Progress(1, 7, 0.0))

    def fail(*args: object) -> None:
        raise OSError("no space left on device")

    place = {"rename": os, "save_file": safetensors.torch, "save": torch}[failing]
    monkeypatch.setattr(place, failing, fail)
    with pytest.raises(OSError, match="no space left"):
        checkpoints.save(network, Progress(2, 14, 0.0))
    monkeypatch.undo()
    assert [path.name for path in checkpoints.folder.iterdir()] == ["step-00000007"]
    assert checkpoints.restore(network).step == 7


def test_leftovers_of_a_kill_are_removed(recipe: Recipe, tmp_path: Path):
    leftover = tmp_path / ".partial-step-00000007"
    leftover.mkdir()
    (leftover / "model.safetensors").write_bytes(b"half")
    assert Checkpoints(tmp_path, recipe.digest).newest() is None
    assert not leftover.exists()


def test_tied_tensors_are_stored_once(checkpoints: Checkpoints, network: Network):
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(64, 64)
            self.second = nn.Linear(64, 64)
            self.second.weight = self.first.weight

    network.model, network.pruner = Tied(), None
    network.optimizer = torch.optim.SGD(network.model.parameters(), lr=0.1)
    path = checkpoints.save(network, Progress(1, 7, 0.0))
    assert (path / "model.safetensors").stat().st_size < 1.5 * 4 * 64 * 64
    before = network.model.first.weight.detach().clone()
    with torch.no_grad():
        network.model.first.weight.zero_()
    checkpoints.restore(network)
    assert torch.equal(network.model.second.weight, before)


@pytest.mark.parametrize("name", ["model.safetensors", "state.pt"])
def test_truncated(checkpoints: Checkpoints, network: Network, name: str):
    path = checkpoints.save(network, Progress(1, 7, 0.0)) / name
    content = path.read_bytes()
    path.write_bytes(content[:-100])
    assert _sentence(checkpoints, network) == (
        f"Expected {path} to have {len(content)} bytes. Got {len(content) - 100}: "
        "the file is damaged."
    )


@pytest.mark.parametrize("name", ["model.safetensors", "state.pt"])
def test_flipped_bit(checkpoints: Checkpoints, network: Network, name: str):
    path = checkpoints.save(network, Progress(1, 7, 0.0)) / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert _sentence(checkpoints, network) == (
        f"Expected {path} to have the checksum that meta.json says. "
        "Got another: the file is damaged."
    )


@pytest.mark.parametrize("name", sorted(FILES))
def test_missing_file(checkpoints: Checkpoints, network: Network, name: str):
    path = checkpoints.save(network, Progress(1, 7, 0.0)) / name
    path.unlink()
    assert (
        _sentence(checkpoints, network) == f"Expected a checkpoint with {path}. Got no such file."
    )


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("{", "to be JSON. Got something else."),
        ("[" * 100_000, "to be JSON. Got something else."),
        ("[]", "to have format_version 3. Got None."),
        ('{"format_version": 1}', "to have format_version 3. Got 1."),
        ('{"format_version": 3}', "to have epoch of type int. Got None: the file is damaged."),
    ],
)
def test_damaged_meta(checkpoints: Checkpoints, network: Network, content: str, sentence: str):
    path = checkpoints.save(network, Progress(1, 7, 0.0)) / "meta.json"
    path.write_text(content)
    assert _sentence(checkpoints, network) == f"Expected {path} {sentence}"


@pytest.mark.parametrize("key", ["epoch", "step", "seconds", "recipe", "seed", "width", "files"])
def test_changed_meta(checkpoints: Checkpoints, network: Network, key: str):
    """One digit of a number or of a checksum is another one."""
    path = checkpoints.save(network, Progress(1, 7, 2.5)) / "meta.json"
    head, tail = path.read_text().split(f'"{key}"')
    digit = next(character for character in tail if character.isdigit())
    path.write_text(f'{head}"{key}"{tail.replace(digit, str((int(digit) + 1) % 10), 1)}')
    assert _sentence(checkpoints, network) == (
        f"Expected {path} to have the checksum that it says. Got another: the file is damaged."
    )


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"epoch": "3"}, "to have epoch of type int. Got '3': the file is damaged."),
        ({"step": True}, "to have step of type int. Got True: the file is damaged."),
        ({"seconds": None}, "to have seconds of type float. Got None: the file is damaged."),
        ({"files": []}, "to have files of type dict. Got []: the file is damaged."),
        ({"sha256": 1}, "to have sha256 of type str. Got 1: the file is damaged."),
        (
            {"files": {"state.pt": {}}},
            "to have checksums of model.safetensors and state.pt. Got state.pt: the file is "
            "damaged.",
        ),
    ],
)
def test_meta_of_another_kind(
    checkpoints: Checkpoints, network: Network, changes: dict[str, object], sentence: str
):
    path = checkpoints.save(network, Progress(1, 7, 2.5)) / "meta.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    assert _sentence(checkpoints, network) == f"Expected {path} {sentence}"


def test_a_file_that_cannot_be_read(checkpoints: Checkpoints, network: Network):
    path = checkpoints.save(network, Progress(1, 7, 2.5)) / "meta.json"
    path.unlink()
    path.mkdir()
    assert _sentence(checkpoints, network) == (
        f"Expected {path} to be readable. Got: Is a directory."
    )


def _rewrite(folder: Path, name: str, content: bytes) -> None:
    """Replaces a file and its checksum: what is left are mistakes of the content."""
    (folder / name).write_bytes(content)
    meta = json.loads((folder / "meta.json").read_text())
    meta["files"][name] = checkpoint_module._checksum(folder / name)
    meta["sha256"] = checkpoint_module._digest(meta)
    (folder / "meta.json").write_text(json.dumps(meta))


def test_foreign_content(checkpoints: Checkpoints, network: Network):
    path = checkpoints.save(network, Progress(1, 7, 0.0))
    good = (path / "state.pt").read_bytes()
    _rewrite(path, "state.pt", b"not a zip")
    sentence = _sentence(checkpoints, network)
    assert sentence.startswith(f"Expected {path / 'state.pt'} to be a file of torch.save. Got: ")
    _rewrite(path, "state.pt", good)
    _rewrite(path, "model.safetensors", b"not one either")
    sentence = _sentence(checkpoints, network)
    assert sentence.startswith(
        f"Expected {path / 'model.safetensors'} to be a safetensors file. Got: "
    )


def test_other_recipe(checkpoints: Checkpoints, network: Network):
    checkpoints.save(network, Progress(1, 7, 0.0))
    checkpoints.digest = "0" * 64
    sentence = _sentence(checkpoints, network)
    assert f"meta.json to be of recipe {'0' * 64!r}. Got " in sentence
    assert sentence.endswith(": the checkpoint belongs to another training.")


@pytest.mark.parametrize(("key", "value"), [("seed", 1), ("name", "dense"), ("width", 0.5)])
def test_other_network(checkpoints: Checkpoints, network: Network, key: str, value: object):
    checkpoints.save(network, Progress(1, 7, 0.0))
    setattr(network, key, value)
    assert _sentence(checkpoints, network).endswith(": the checkpoint belongs to another training.")


def test_other_model(
    checkpoints: Checkpoints, network: Network, tiny: Callable[..., Recipe], dataset: Dataset
):
    path = checkpoints.save(network, Progress(1, 7, 0.0)) / "model.safetensors"
    other = build_network(tiny("rigl", "model.hidden=[32]"), dataset, "sparse", 0)
    sentence = _sentence(checkpoints, other)
    assert sentence.startswith(f"Expected {path} to fit the recipe's model. Got: ")
