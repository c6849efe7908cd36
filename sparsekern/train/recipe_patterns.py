"""A recipe's ``pattern``: a name, ``fan_in``, or one with its sizes, ``{block: [16, 16]}``."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import PlainValidator

from sparsekern._registry import Registry
from sparsekern.patterns import Block, FanIn, Pattern, Unstructured
from sparsekern.train.recipe_errors import dotted, shown, within

PATTERNS: Registry[type[Pattern]] = Registry("pattern")
PATTERNS.add("unstructured", Unstructured)
PATTERNS.add("block", Block)
PATTERNS.add("fan_in", FanIn)


def read_pattern(value: Any) -> Pattern:
    """The pattern that a file's value means.

    Args:
        value: the name of a pattern without sizes, or a mapping of one name to the list of its
            sizes, in the order of the dataclass's fields; a pattern is returned as it is.

    Raises:
        ValueError: with one sentence that begins with the key, ``pattern``.
    """
    if isinstance(value, Pattern):
        return value
    name, given = value, ()
    if isinstance(value, Mapping) and len(value) == 1:
        [(name, given)] = value.items()
    if not isinstance(name, str):
        raise ValueError(
            "Expected pattern to be a name, or a mapping of one name to its sizes. "
            f"Got {shown(value)}."
        )
    kind = PATTERNS[name]
    sizes = [field.name for field in dataclasses.fields(kind)]
    if not isinstance(given, (list, tuple)) or len(given) != len(sizes):
        got = "nothing" if given == () else shown(given)
        wanted = f"[{', '.join(sizes)}]" if sizes else "a name alone"
        raise ValueError(f"Expected {dotted('pattern', name)} to be {wanted}. Got {got}.")
    try:
        return kind(*given)
    except (TypeError, ValueError) as error:
        raise ValueError(within(dotted("pattern", name), str(error), sizes)) from None


def written_pattern(pattern: Pattern) -> Any:
    """The value of a file that gives ``pattern`` again."""
    name = next(name for name in PATTERNS if PATTERNS[name] is type(pattern))
    sizes = list(dataclasses.astuple(pattern))
    return {name: sizes} if sizes else name


RecipePattern = Annotated[Pattern, PlainValidator(read_pattern)]
