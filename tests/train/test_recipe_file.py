"""Recipe files, bundled recipes, overrides."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparsekern.data import Digits
from sparsekern.patterns import Block
from sparsekern.train.recipe_file import bundled_recipes, load_recipe, save_recipe

SMALL = """
name: small
data: digits
model: {name: mlp, hidden: [8]}
method: {name: static, density: 0.2}
optimizer: {name: sgd, lr: 1e-1}
learning_rate: constant
batch_size: 32
epochs: 2
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    place = tmp_path / "small.yaml"
    place.write_text(SMALL)
    return place


def test_bundled_recipes_load_and_are_described():
    assert {"digits-rigl", "digits-set", "digits-static", "digits-gmp"} <= set(bundled_recipes())
    for name in bundled_recipes():
        recipe = load_recipe(name)
        assert recipe.name == name
        assert recipe.description


@pytest.mark.parametrize("name", bundled_recipes())
def test_resolved_recipe_loads_to_the_identical_one(name: str, tmp_path: Path):
    recipe = load_recipe(name).with_small_dense_width(0.123456789)
    save_recipe(recipe, tmp_path / "recipe.yaml")
    assert load_recipe(tmp_path / "recipe.yaml") == recipe
    assert [entry.name for entry in tmp_path.iterdir()] == ["recipe.yaml"]


def test_path(path: Path):
    assert load_recipe(path).optimizer.lr == 0.1


def test_overrides(path: Path):
    recipe = load_recipe(
        path, ["method.density=2e-2", "epochs=7", "model.hidden=[4, 4]", "baselines.dense=false"]
    )
    assert recipe.method.density == 0.02
    assert recipe.epochs == 7
    assert recipe.to_dict()["model"]["hidden"] == [4, 4]
    assert recipe.baselines.dense is False


@pytest.mark.parametrize(
    "change", ["method.pattern.block=[4, 8]", "method.pattern={block: [4, 8]}"]
)
def test_an_override_of_the_pattern(path: Path, change: str):
    assert load_recipe(path, [change]).method.pattern == Block(4, 8)
    assert load_recipe("digits-block-rigl", [change]).method.pattern == Block(4, 8)


def test_an_override_of_a_section_given_by_name(path: Path):
    recipe = load_recipe(path, ["data.test_fraction=0.25", "learning_rate=linear"])
    assert recipe.data == Digits(test_fraction=0.25)
    assert recipe.to_dict()["learning_rate"]["name"] == "linear"


def test_the_last_override_wins(path: Path):
    assert load_recipe(path, ["epochs=7", "epochs=8"]).epochs == 8


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("epochs", "Expected --set to be key=value with dotted keys. Got 'epochs'."),
        ("=3", "Expected --set to be key=value with dotted keys. Got '=3'."),
        ("a..b=3", "Expected --set to be key=value with dotted keys. Got 'a..b=3'."),
        ("epochs.more=3", "Expected epochs to be a section. Got 2."),
        ("methd.density=3", "Expected keys of the recipe to be among name,"),
        ("epochs=[", "Expected the value of --set epochs to be YAML. Got a mistake in line 1: "),
        ("epochs=", "Expected epochs to be a whole number. Got None."),
    ],
)
def test_bad_overrides(path: Path, override: str, sentence: str):
    with pytest.raises(ValueError) as error:
        load_recipe(path, [override])
    assert str(error.value).startswith(sentence)


def test_unknown_name():
    with pytest.raises(ValueError) as error:
        load_recipe("digits-rigel")
    known = ", ".join(bundled_recipes())
    assert str(error.value).startswith(f"Expected recipe to be one of {known} or the path of a ")
    assert str(error.value).endswith("Got 'digits-rigel'. Did you mean 'digits-rigl'?")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("- a\n- b\n", "to hold a mapping of keys. Got ['a', 'b']."),
        ("name: [\n", "to be YAML. Got a mistake in line 2: "),
        ("name: a\nname: b\n", "to be YAML. Got a mistake in line 1: the key 'name' is given tw"),
        ("", "to hold a mapping of keys. Got None."),
    ],
)
def test_bad_files(tmp_path: Path, text: str, sentence: str):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ValueError) as error:
        load_recipe(path)
    assert str(error.value).startswith(f"Expected {path} {sentence}")


def test_file_of_other_bytes(tmp_path: Path):
    path = tmp_path / "bad.yaml"
    path.write_bytes(b"\xff\xfe\xfd")
    with pytest.raises(ValueError, match=r"to be a YAML file\. Got other bytes\."):
        load_recipe(path)


@pytest.mark.parametrize(
    ("text", "got"),
    [
        ("a: 2024-13-45", "Got a mistake: month must be in 1..12."),
        ("a: &a [*a]", "Got deeper ones, or one that holds itself."),
        ("a: " + "[" * 20_000, "Got deeper ones, or one that holds itself."),
    ],
)
def test_odd_yaml(tmp_path: Path, text: str, got: str):
    path = tmp_path / "odd.yaml"
    path.write_text(text)
    with pytest.raises(ValueError) as error:
        load_recipe(path)
    assert str(error.value).startswith(f"Expected {path} to ")
    assert str(error.value).endswith(got)
