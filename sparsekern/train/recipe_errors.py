"""One house sentence for whatever is wrong with a recipe."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, ValidationError

# What pydantic calls an error, and what we expected then.
_EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "text",
    "tuple_type": "a list",
    "model_type": "a mapping of keys to values",
    "greater_than": "above {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "below {lt}",
    "less_than_equal": "at most {le}",
    "too_long": "a list of at most {max_length} values",
}


def validate(model: type[BaseModel], value: Any, section: str = "") -> Any:
    """``model`` filled with ``value``, or a ValueError with one sentence about the first mistake.

    Args:
        model: what ``value`` has to fit.
        value: what came, lists as tuples.
        section: dotted key of ``value`` in the recipe, "" for the recipe itself.
    """
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise ValueError(_sentence(model, error, section)) from None


def _sentence(model: type[BaseModel], error: ValidationError, section: str) -> str:
    # A misspelt key often leaves another one missing: it is the better thing to name.
    mistakes = sorted(error.errors(), key=lambda each: each["type"] != "extra_forbidden")
    mistake = mistakes[0]
    kind, location = mistake["type"], mistake["loc"]
    key = dotted(section, *location)
    if kind == "value_error":
        sentence = str(mistake["ctx"]["error"])
        return within(section, sentence, model.model_fields) if section else sentence
    if kind == "extra_forbidden":
        for part in location[:-1]:
            model = model.model_fields[str(part)].annotation  # type: ignore[assignment]
        parent = dotted(section, *location[:-1])
        return unknown_key(str(location[-1]), model.model_fields, parent)
    if kind == "missing":
        return f"Expected {key} to be given. Got nothing."
    if kind in _EXPECTED:
        wanted = _EXPECTED[kind].format(**mistake.get("ctx", {}))
    else:
        wanted = mistake["msg"]
    return f"Expected {key} to be {wanted}. Got {shown(mistake['input'])}."


def unknown_key(key: str, known: Iterable[str], section: str) -> str:
    """The sentence for a key that a section does not have."""
    known = list(known)
    close = difflib.get_close_matches(key, known, n=1)
    hint = f" Did you mean {dotted(section, close[0])!r}?" if close else ""
    return (
        f"Expected keys of {section or 'the recipe'} to be among {', '.join(known)}. "
        f"Got {dotted(section, key)!r}.{hint}"
    )


def dotted(*parts: str | int) -> str:
    """``("optimizer", "betas", 1)`` as ``optimizer.betas[1]``."""
    key = ""
    for part in parts:
        if isinstance(part, int):
            key += f"[{part}]"
        elif part:
            key += f".{part}" if key else part
    return key


def within(section: str, sentence: str, options: Iterable[str]) -> str:
    """A sentence of a section's own checks, with the dotted key in place of the option's name.

    "Expected density to be in [0, 1]." becomes "Expected method.density to be in [0, 1]."; a
    sentence that does not begin with the name of an option is led in by the section.
    """
    match = re.match(r"Expected (\w+)", sentence)
    if match is not None and match[1] in set(options):
        return f"Expected {section}.{sentence[len('Expected ') :]}"
    return f"{section}: {sentence}"


def shown(value: Any) -> str:
    """What came, as the user wrote it and not too long."""
    text = repr(_as_lists(value))
    return text if len(text) <= 80 else text[:77] + "..."


def _as_lists(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_as_lists(each) for each in value]
    if isinstance(value, dict):
        return {key: _as_lists(each) for key, each in value.items()}
    return value
