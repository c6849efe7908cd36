"""The training loop: learns, repeats itself bit for bit, and goes on where it was stopped."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from sparsekern.data import Dataset
from sparsekern.data.images import CropAndFlip, Standardize
from sparsekern.nn import sparse_layers
from sparsekern.prune import METHODS
from sparsekern.train.loop import evaluate
from sparsekern.train.metrics import MetricsLog, Row
from sparsekern.train.network import build_network
from sparsekern.train.recipe import Recipe
from sparsekern.train.recipe_file import bundled_recipes, load_recipe
from tests.train.conftest import assert_same_training, train_until

NAMES = [name for name in METHODS if f"digits-{name}" in bundled_recipes()]


def _rows(folder: Path) -> list[Row]:
    return MetricsLog(folder / "metrics.jsonl").rows()


@pytest.mark.parametrize("name", ["sparse", "dense"])
def test_learns(tiny: Callable[..., Recipe], tmp_path: Path, name: str):
    network, progress = train_until(tiny("rigl", "epochs=30"), tmp_path, name)
    rows = _rows(tmp_path)
    assert rows[-1]["test_accuracy"] > 0.9
    assert rows[-1]["train_loss"] < rows[0]["train_loss"] / 4
    assert progress is not None
    assert (progress.epoch, progress.step) == (30, 210)
    assert progress.seconds > 0
    assert network.density == pytest.approx(0.2 if name == "sparse" else 1.0, abs=1e-4)


@pytest.mark.parametrize("method", NAMES)
def test_same_seed_same_bits(tiny: Callable[..., Recipe], tmp_path: Path, method: str):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        train_until(tiny(method), tmp_path / folder)
    assert_same_training(tmp_path / "a" / "checkpoints", tmp_path / "b" / "checkpoints")
    assert _rows(tmp_path / "a") == _rows(tmp_path / "b")


def test_lost_metrics_are_noticed_before_training(tiny: Callable[..., Recipe], tmp_path: Path):
    train_until(tiny("static"), tmp_path, stop=5)
    (tmp_path / "metrics.jsonl").unlink()
    with pytest.raises(ValueError, match="for each of 4 epochs of sparse, seed 0, .* Got 0"):
        train_until(tiny("static"), tmp_path)


def test_other_seed_other_bits(tiny: Callable[..., Recipe], tmp_path: Path):
    for seed in (0, 1):
        (tmp_path / str(seed)).mkdir()
        train_until(tiny("rigl", "epochs=1"), tmp_path / str(seed), seed=seed)
    losses = [_rows(tmp_path / str(seed))[0]["train_loss"] for seed in (0, 1)]
    assert losses[0] != losses[1]


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "masked_adamw"])
@pytest.mark.parametrize("method", NAMES)
def test_interrupted_equals_uninterrupted(
    tiny: Callable[..., Recipe], tmp_path: Path, method: str, optimizer: str
):
    changes = [] if optimizer == "sgd" else [f"optimizer={{name: {optimizer}, lr: 0.01}}"]
    recipe = tiny(method, *changes)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for folder, stops in ((whole, [0]), (cut, [3, 6, 11, 0])):
        folder.mkdir()
        for stop in stops:
            network, _ = train_until(recipe, folder, stop=stop)
    assert_same_training(whole / "checkpoints", cut / "checkpoints")
    assert (whole / "metrics.jsonl").read_bytes() == (cut / "metrics.jsonl").read_bytes()
    assert network.compacted == (method == "gmp")


@pytest.mark.parametrize(
    ("pattern", "format"), [("block: [8, 16]", "bsr"), ("fan_in: []", "condensed")]
)
@pytest.mark.parametrize("method", ["rigl", "gmp"])
def test_interrupted_equals_uninterrupted_with_a_pattern(
    tiny: Callable[..., Recipe], tmp_path: Path, method: str, pattern: str, format: str
):
    """GMP has become compact at the last two stops."""
    recipe = tiny(method, f"method.pattern={{{pattern}}}", "exclude=[output]")
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for folder, stops in ((whole, [0]), (cut, [6, 10, 11, 0])):
        folder.mkdir()
        for stop in stops:
            network, _ = train_until(recipe, folder, stop=stop)
    assert_same_training(whole / "checkpoints", cut / "checkpoints")
    for name in ("hidden0", "hidden1"):
        layer = network.model.get_submodule(name)
        assert layer.format.name == format
        assert layer.format.pattern == recipe.method.pattern


def test_a_finished_training_is_not_repeated(tiny: Callable[..., Recipe], tmp_path: Path):
    recipe = tiny("rigl", "epochs=2")
    trained, first = train_until(recipe, tmp_path)
    again, second = train_until(recipe, tmp_path)
    assert first == second
    for key, value in trained.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[key])


def test_gmp_becomes_compact_after_its_ramp(tiny: Callable[..., Recipe], tmp_path: Path):
    for compact in (True, False):
        folder = tmp_path / str(compact)
        folder.mkdir()
        network, _ = train_until(tiny("gmp", f"compact={str(compact).lower()}"), folder)
        keys = network.model.state_dict().keys()
        assert ("hidden1.format.col" in keys) == compact
        assert network.density == pytest.approx(0.2, abs=1e-4)


def test_networks_of_a_seed_start_from_the_same_weights(tiny: Callable[..., Recipe]):
    recipe = tiny()
    dataset = recipe.data.load()
    dense = build_network(recipe, dataset, "dense", 3).model.get_submodule("hidden1")
    sparse = build_network(recipe, dataset, "sparse", 3).model.get_submodule("hidden1")
    assert torch.equal(dense.weight * sparse.mask(), sparse.weight)


def test_random_masks_do_not_follow_the_weights(tiny: Callable[..., Recipe]):
    recipe = tiny("static", "model.hidden=[512]")
    network = build_network(recipe, recipe.data.load(), "sparse", 0)
    kept = network.model.get_submodule("hidden0").format.active_values()
    assert 0.45 < (kept > 0).float().mean() < 0.55


def test_learning_rate_advances_on_topology_updates(tiny: Callable[..., Recipe], tmp_path: Path):
    recipe = tiny("rigl", "method.update_every=1", "epochs=4", "learning_rate=linear")
    train_until(recipe, tmp_path)
    rates = [row["learning_rate"] for row in _rows(tmp_path)]
    assert rates == pytest.approx([0.2 * (1 - step / 28) for step in (6, 13, 20, 27)])


def test_loss_that_is_not_finite_stops_the_training(tiny: Callable[..., Recipe], tmp_path: Path):
    with pytest.raises(RuntimeError) as error:
        train_until(tiny("rigl", "optimizer.lr=1e30"), tmp_path)
    sentence = str(error.value)
    assert sentence.startswith("Expected a finite loss. Got nan in epoch 1 of sparse, seed 0:")
    assert _rows(tmp_path) == []
    assert not list((tmp_path / "checkpoints").glob("*"))


def test_evaluate_by_hand():
    model = nn.Identity()
    x = torch.tensor([[2.0, 0.0], [0.0, 2.0], [2.0, 0.0]])
    y = torch.tensor([0, 1, 1])
    dataset = Dataset(x, y, x, y, classes=2)
    loss, accuracy = evaluate(model, dataset, batch_size=2)
    right = torch.log1p(torch.exp(torch.tensor(-2.0))).item()
    assert loss == pytest.approx((3 * right + 2) / 3)
    assert accuracy == pytest.approx(2 / 3)
    assert not model.training


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[float]:
    """Densities that are measured; what rules choose loses each time."""
    asked: list[float] = []

    def time_layer(layer: nn.Module, call: object, training: bool) -> dict[str, dict[str, float]]:
        asked.append(layer.format.density)
        slow = {"panel": 2.0, "csr": 2.0, "dense": 1.0}
        times = {name: slow[name] for name in layer.format.variants} | {"dense_layer": 1.0}
        return {"forward": times, "forward_backward": times}

    monkeypatch.setattr(sys.modules["sparsekern.nn.tune"], "time_layer", time_layer)
    (tmp_path / "no_folder").write_text("")
    monkeypatch.setenv("SPARSEKERN_CACHE_DIR", str(tmp_path / "no_folder"))
    return asked


@pytest.mark.filterwarnings("ignore:sparsekern keeps no measured times")
@pytest.mark.parametrize("method", ["rigl", "gmp"])
def test_a_tuned_training_goes_on_with_its_plan(
    tiny: Callable[..., Recipe],
    tmp_path: Path,
    method: str,
    clock: list[float],
    monkeypatch: pytest.MonkeyPatch,
):
    recipe = tiny(method, "tune=true", "checkpoint_every=2")
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for folder, stops in ((whole, [0]), (cut, [3, 5, 0])):
        folder.mkdir()
        for stop in stops:
            network, _ = train_until(recipe, folder, stop=stop)
            if stop == 3 and method == "rigl":  # from here on the plan comes from the checkpoint
                monkeypatch.setattr(
                    sys.modules["sparsekern.nn.tune"], "time_layer", lambda *_: pytest.fail("again")
                )
    assert_same_training(whole / "checkpoints", cut / "checkpoints")
    assert (whole / "metrics.jsonl").read_bytes() == (cut / "metrics.jsonl").read_bytes()
    assert network.plan is not None
    assert "csr" in {entry.format for entry in network.plan}  # of the compacted layers for gmp
    layers = sparse_layers(network.model).values()
    assert [layer.format.variant for layer in layers] == ["dense"] * len(network.plan.layers)
    finals = [round(layer.format.density, 6) for layer in layers]
    assert {round(density, 6) for density in clock[-len(finals) :]} == set(finals)
    untuned = tmp_path / "untuned"
    untuned.mkdir()
    assert train_until(tiny(method), untuned)[0].plan is None


def test_dense_networks_have_nothing_to_tune(
    tiny: Callable[..., Recipe], tmp_path: Path, clock: list[float]
):
    network, _ = train_until(tiny("rigl", "tune=true", "epochs=1"), tmp_path, "dense")
    assert network.plan is None
    assert not clock


def test_evaluate_counts_every_token():
    logits = torch.tensor([[2.0, 0.0], [0.0, 2.0], [2.0, 0.0]])
    x, y = logits.expand(4, 3, 2), torch.tensor([[0, 1, 1]]).expand(4, 3)
    loss, accuracy = evaluate(nn.Identity(), Dataset(x, y, x, y, classes=2), batch_size=3)
    right = torch.log1p(torch.exp(torch.tensor(-2.0))).item()
    assert loss == pytest.approx((3 * right + 2) / 3)
    assert accuracy == pytest.approx(2 / 3)


def test_augmented_images_with_dropout_go_on_where_they_stopped(tmp_path: Path):
    """Crops, flips and dropout follow from seed and epoch, or from what a checkpoint holds."""
    pixels = torch.randint(0, 256, (40, 1, 8, 8), dtype=torch.uint8)
    labels = torch.arange(40) % 4
    dataset = Dataset(
        pixels, labels, pixels, labels, 4, prepare=Standardize.of(pixels), augment=CropAndFlip(2)
    )
    recipe = load_recipe(
        "digits-vit-rigl",
        [
            "model={name: vit, patch: 4, features: 8, heads: 2, depth: 1, dropout: 0.2}",
            *("epochs=4", "batch_size=8", "method.update_every=3", "checkpoint_every=1"),
        ],
    )
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for folder, stops in ((whole, [0]), (cut, [2, 3, 0])):
        folder.mkdir()
        for stop in stops:
            train_until(recipe, folder, stop=stop, dataset=dataset)
    assert_same_training(whole / "checkpoints", cut / "checkpoints")
    assert (whole / "metrics.jsonl").read_bytes() == (cut / "metrics.jsonl").read_bytes()
