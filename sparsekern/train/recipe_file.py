"""Recipes as YAML files: bundled ones by name, others by path, changed by ``--set``."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from sparsekern.train.files import write_atomically
from sparsekern.train.recipe import Recipe
from sparsekern.train.recipe_errors import shown


class _Loader(yaml.SafeLoader):
    """YAML in which ``1e-3`` is a number and a key given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = [key for i, key in enumerate(keys) if key in keys[:i]]
        if twice:
            raise yaml.constructor.ConstructorError(
                problem=f"the key {twice[0]!r} is given twice", problem_mark=node.start_mark
            )
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def bundled_recipes() -> list[str]:
    """Names of the recipes that come with the package."""
    folder = resources.files("sparsekern") / "recipes"
    return sorted(
        entry.name.removesuffix(".yaml")
        for entry in folder.iterdir()
        if entry.name.endswith(".yaml")
    )


def load_recipe(recipe: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """A recipe by the name of a bundled one, or by the path of a YAML file.

    Args:
        recipe: name or path.
        overrides: ``key=value`` with dotted keys (``method.density=0.02``); values are YAML. They
            are applied before anything is checked.

    Raises:
        ValueError: with one sentence that names the key, what was expected and what came.
        OSError: the file cannot be read.
    """
    text, origin = _read(recipe)
    values = _parse(text, origin)
    if not isinstance(values, dict):
        raise ValueError(f"Expected {origin} to hold a mapping of keys. Got {shown(values)}.")
    for override in overrides:
        _apply(values, override)
    try:
        return Recipe.from_dict(values)
    except RecursionError:
        raise ValueError(_too_deep(origin)) from None


def save_recipe(recipe: Recipe, path: Path) -> None:
    """Writes the resolved recipe, which loads to the identical one."""
    text = yaml.safe_dump(recipe.to_dict(), sort_keys=False, allow_unicode=True)
    write_atomically(path, text.encode())


def _read(recipe: str | Path) -> tuple[str, str]:
    """The text of a recipe, and what to call it in sentences."""
    known = bundled_recipes()
    if str(recipe) in known:
        file = resources.files("sparsekern") / "recipes" / f"{recipe}.yaml"
        return file.read_text("utf-8"), f"the recipe {recipe}"
    path = Path(recipe)
    if not path.is_file():
        close = difflib.get_close_matches(str(recipe), known, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(
            f"Expected recipe to be one of {', '.join(known)} or the path of a YAML file. "
            f"Got {str(recipe)!r}.{hint}"
        )
    try:
        return path.read_text("utf-8"), str(path)
    except UnicodeDecodeError:
        raise ValueError(f"Expected {path} to be a YAML file. Got other bytes.") from None


def _too_deep(origin: str) -> str:
    return (
        f"Expected {origin} to hold values of a few levels. Got deeper ones, or one that holds "
        "itself."
    )


def _parse(text: str, origin: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except RecursionError:
        raise ValueError(_too_deep(origin)) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or "something else"
        raise ValueError(
            f"Expected {origin} to be YAML. Got a mistake{where}: {problem}."
        ) from None
    except ValueError as error:  # a date that cannot be, say
        raise ValueError(f"Expected {origin} to be YAML. Got a mistake: {error}.") from None


def _apply(values: dict[str, Any], override: str) -> None:
    """Puts one ``key=value`` into the file's values."""
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise ValueError(f"Expected --set to be key=value with dotted keys. Got {override!r}.")
    place = values
    for i, part in enumerate(parts[:-1]):
        inner = place.setdefault(part, {})
        if isinstance(inner, str):  # a section given by its name alone
            inner = place[part] = {"name": inner}
        if not isinstance(inner, dict):
            raise ValueError(
                f"Expected {'.'.join(parts[: i + 1])} to be a section. Got {shown(inner)}."
            )
        place = inner
    place[parts[-1]] = _parse(text, f"the value of --set {key.strip()}")
