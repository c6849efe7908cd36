"""Recipes: every mistake is one sentence that names the key, what was expected and what came."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from sparsekern.data import DATASETS
from sparsekern.models import MLP
from sparsekern.patterns import Block, FanIn, Pattern, Unstructured
from sparsekern.prune import METHODS, RigL
from sparsekern.train.learning_rate import Cosine
from sparsekern.train.optimizers import AdamW
from sparsekern.train.recipe import Recipe

DATA = ", ".join(sorted(DATASETS))
BASE: dict[str, Any] = {
    "name": "small",
    "data": {"name": "digits"},
    "model": {"name": "mlp", "hidden": [8]},
    "method": {"name": "rigl", "density": 0.2, "update_every": 5},
    "optimizer": {"name": "sgd", "lr": 0.1},
    "learning_rate": {"name": "cosine"},
    "batch_size": 32,
    "epochs": 2,
}


def _changed(key: str, value: Any) -> dict[str, Any]:
    values = copy.deepcopy(BASE)
    *parents, last = key.split(".")
    place = values
    for parent in parents:
        place = place.setdefault(parent, {})
    place[last] = value
    return values


def _sentence(values: dict[str, Any]) -> str:
    with pytest.raises(ValueError) as error:
        Recipe.from_dict(values)
    assert error.value.__cause__ is None
    return str(error.value)


METHOD_NAMES = ", ".join(sorted(METHODS))
METHOD_KEYS = "name, density, distribution, pattern, update_every, drop_fraction, end"
PATTERN_FORM = "Expected method.pattern to be a name, or a mapping of one name to its sizes."
SGD_KEYS = "name, lr, weight_decay, momentum, nesterov"


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        # unknown keys
        (
            "method.denisty",
            0.1,
            f"Expected keys of method to be among {METHOD_KEYS}. Got 'method.denisty'. "
            "Did you mean 'method.density'?",
        ),
        (
            "optimizer.betas",
            [0.9, 0.99],
            f"Expected keys of optimizer to be among {SGD_KEYS}. Got 'optimizer.betas'.",
        ),
        ("model.hiden", [8], "Expected keys of model to be among name, width, hidden. Got"),
        ("data.fraction", 1, "Expected keys of data to be among name, input_shape, "),
        ("baselines.big", True, "Expected keys of baselines to be among dense, small_dense, "),
        ("epoch", 3, "Expected keys of the recipe to be among name, description, data, "),
        # unknown names
        ("method.name", "riggl", f"Expected method.name to be one of {METHOD_NAMES}. Got 'riggl'"),
        ("method", "nope", f"Expected method.name to be one of {METHOD_NAMES}. Got 'nope'."),
        (
            "optimizer.name",
            "muon",
            "Expected optimizer.name to be one of adamw, masked_adamw, masked_sgd, sgd. Got 'muon'",
        ),
        ("learning_rate", "cos", "Expected learning_rate.name to be one of constant, cosine, "),
        ("data.name", 3, f"Expected data.name to be one of {DATA}. Got 3."),
        ("format", "css", "Expected format to be one of auto, bsr, condensed, csr, masked"),
        ("method.distribution", "erq", "Expected method.distribution to be one of er, erk, unif"),
        (
            "method.pattern",
            {"blok": [4, 4]},
            "Expected method.pattern to be one of block, fan_in, unstructured. Got 'blok'.",
        ),
        # patterns
        ("method.pattern", 16, f"{PATTERN_FORM} Got 16."),
        ("method.pattern", [16, 16], f"{PATTERN_FORM} Got [16, 16]."),
        ("method.pattern", None, f"{PATTERN_FORM} Got None."),
        ("method.pattern", {1: [16, 16]}, f"{PATTERN_FORM} Got {{1: [16, 16]}}."),
        (
            "method.pattern",
            {"block": [4, 4], "unstructured": []},
            f"{PATTERN_FORM} Got {{'block': [4, 4], 'unstructured': []}}.",
        ),
        (
            "method.pattern",
            "block",
            "Expected method.pattern.block to be [height, width]. Got nothing.",
        ),
        (
            "method.pattern.block",
            16,
            "Expected method.pattern.block to be [height, width]. Got 16.",
        ),
        (
            "method.pattern.block",
            [16],
            "Expected method.pattern.block to be [height, width]. Got [16].",
        ),
        (
            "method.pattern.unstructured",
            [1],
            "Expected method.pattern.unstructured to be a name alone. Got [1].",
        ),
        (
            "method.pattern.block",
            [16, 129],
            "Expected method.pattern.block.width of a block to be 1 to 128. Got 129.",
        ),
        (
            "method.pattern.block",
            [4.0, 4],
            "Expected method.pattern.block.height of a block to be an integer. Got 4.0.",
        ),
        (
            "format",
            "bsr",
            "Expected method.pattern to be Block(h, w) with format='bsr'. Got Unstructured().",
        ),
        # types
        ("epochs", 1.5, "Expected epochs to be a whole number. Got 1.5."),
        ("epochs", True, "Expected epochs to be a whole number. Got True."),
        ("epochs", "ten", "Expected epochs to be a whole number. Got 'ten'."),
        ("name", 3, "Expected name to be text. Got 3."),
        ("compact", 1, "Expected compact to be true or false. Got 1."),
        ("exclude", "output", "Expected exclude to be a list. Got 'output'."),
        ("exclude", [1], "Expected exclude[0] to be text. Got 1."),
        ("baselines", "all", "Expected baselines to be a mapping of keys to values. Got 'all'."),
        ("baselines.dense", "yes", "Expected baselines.dense to be true or false. Got 'yes'."),
        ("method", 3, "Expected method to be a name or a mapping. Got 3."),
        ("method.density", "low", "Expected method.density to be a number. Got 'low'."),
        ("model.hidden", 8, "Expected model.hidden to be a list. Got 8."),
        ("model.hidden", [8, "x"], "Expected model.hidden[1] to be a whole number. Got 'x'."),
        ("optimizer.nesterov", 1, "Expected optimizer.nesterov to be true or false. Got 1."),
        # ranges
        ("epochs", 0, "Expected epochs to be above 0. Got 0."),
        ("batch_size", -1, "Expected batch_size to be above 0. Got -1."),
        ("seed", -1, "Expected seed to be at least 0. Got -1."),
        ("seed", 2**32, "Expected seed to be below 4294967296. Got 4294967296."),
        ("baselines.small_dense_width", 0, "Expected baselines.small_dense_width to be above 0."),
        ("name", "a/b", "Expected name to consist of letters, digits, '.', '_' and '-'. Got 'a/b'"),
        ("method.density", 3, "Expected method.density to be in [0, 1]. Got 3.0."),
        ("method.update_every", 0, "Expected method.update_every to be above 0. Got 0."),
        ("model.hidden", [0], "Expected model.hidden to be above 0. Got 0."),
        ("data.test_fraction", 1, "Expected data.test_fraction to be between 0 and 1. Got 1.0."),
        ("optimizer.lr", 0, "Expected optimizer.lr to be above 0 and finite. Got 0.0."),
        ("optimizer.lr", float("nan"), "Expected optimizer.lr to be a finite number. Got nan."),
        ("optimizer.momentum", 2, "Expected optimizer.momentum to be in [0, 1]. Got 2.0."),
        ("optimizer.weight_decay", -1, "Expected optimizer.weight_decay to be at least 0. Got"),
        ("learning_rate.final_factor", 2, "Expected learning_rate.final_factor to be in [0, 1]."),
        # combinations
        ("optimizer.nesterov", True, "Expected optimizer.momentum to be above 0 for nesterov."),
        (
            "learning_rate",
            {"name": "linear", "warmup_epochs": 1, "warmup_fraction": 0.1},
            "Expected learning_rate.warmup_epochs or warmup_fraction, not both. Got 1.0 and 0.1.",
        ),
        (
            "method",
            {"name": "gmp", "begin": 0.5, "end": 0.5},
            "Expected method.begin to be below end. Got 0.5 and 0.5.",
        ),
        # missing
        ("model", {"name": "mlp"}, "Expected model.hidden to be given. Got nothing."),
        ("optimizer", "sgd", "Expected optimizer.lr to be given. Got nothing."),
        ("data", {}, f"Expected data.name to be one of {DATA}. Got nothing."),
        (
            "optimizer",
            {"name": "adamw", "lr": 0.1, "betas": [0.9]},
            "Expected optimizer.betas[1] to be given. Got nothing.",
        ),
        (
            "optimizer",
            {"name": "adamw", "lr": 0.1, "betas": [0.9, 0.9, 0.9]},
            "Expected optimizer.betas to be a list of at most 2 values. Got [0.9, 0.9, 0.9].",
        ),
    ],
)
def test_one_sentence(key: str, value: Any, sentence: str):
    assert _sentence(_changed(key, value)).startswith(sentence)


@pytest.mark.parametrize("key", ["name", "data", "model", "method", "optimizer", "epochs"])
def test_missing_key(key: str):
    values = {k: v for k, v in BASE.items() if k != key}
    assert _sentence(values) == f"Expected {key} to be given. Got nothing."


def test_a_misspelt_key_is_named_before_the_one_that_is_then_missing():
    values = {("epohcs" if k == "epochs" else k): v for k, v in BASE.items()}
    assert _sentence(values).endswith("Got 'epohcs'. Did you mean 'epochs'?")


def test_long_values_are_cut():
    assert len(_sentence(_changed("epochs", "x" * 1000))) < 200


def test_sections_become_dataclasses():
    values = copy.deepcopy(BASE)
    values["optimizer"] = {"name": "adamw", "lr": 0.01, "betas": [0.8, 0.9]}
    recipe = Recipe.from_dict(values)
    assert recipe.method == RigL(density=0.2, update_every=5)
    assert recipe.model == MLP(hidden=(8,))
    assert recipe.optimizer == AdamW(lr=0.01, betas=(0.8, 0.9))
    assert recipe.learning_rate == Cosine()


def test_a_section_may_be_a_name_alone():
    assert Recipe.from_dict(_changed("method", "static")).method.name == "static"


def test_round_trip():
    recipe = Recipe.from_dict(BASE)
    assert Recipe.from_dict(recipe.to_dict()) == recipe
    assert recipe.to_dict()["method"]["drop_fraction"] == 0.3


@pytest.mark.parametrize(
    ("value", "pattern"),
    [
        ("unstructured", Unstructured()),
        ({"unstructured": []}, Unstructured()),
        ("fan_in", FanIn()),
        ({"block": [4, 16]}, Block(4, 16)),
    ],
)
def test_patterns(value: Any, pattern: Pattern):
    recipe = Recipe.from_dict(_changed("method.pattern", value))
    assert recipe.method.pattern == pattern
    assert Recipe.from_dict(recipe.to_dict()) == recipe
    written = recipe.to_dict()["method"]["pattern"]
    assert written in (value, "unstructured")
    other = Recipe.from_dict(_changed("method.pattern", {"block": [8, 8]}))
    assert recipe.digest != other.digest


def test_whole_numbers_may_stand_for_numbers():
    assert Recipe.from_dict(_changed("method.density", 1)) == Recipe.from_dict(
        _changed("method.density", 1.0)
    )


def test_frozen():
    with pytest.raises(ValueError, match="frozen"):
        Recipe.from_dict(BASE).epochs = 3  # type: ignore[misc]


def test_digest_follows_what_decides_the_training():
    digest = Recipe.from_dict(BASE).digest
    assert Recipe.from_dict(_changed("description", "other words")).digest == digest
    assert Recipe.from_dict(_changed("seeds", 3)).digest == digest
    assert Recipe.from_dict(_changed("epochs", 3)).digest != digest
    assert Recipe.from_dict(_changed("method.density", 0.3)).digest != digest


def test_a_run_goes_on_after_its_width_was_found():
    recipe = Recipe.from_dict(BASE)
    found = recipe.with_small_dense_width(0.5)
    assert recipe.is_continued_by(recipe)
    assert found.is_continued_by(recipe)
    assert found.is_continued_by(found)
    assert not found.is_continued_by(recipe.with_small_dense_width(0.4))
    assert not found.is_continued_by(Recipe.from_dict(_changed("epochs", 3)))
