"""Recipe sections ``{name: ..., option: ...}`` that become a registered frozen dataclass."""

from __future__ import annotations

import dataclasses
import functools
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, create_model
from pydantic_core import CoreSchema, core_schema

from sparsekern._registry import Registry
from sparsekern.patterns import Pattern
from sparsekern.train.recipe_errors import dotted, shown, validate, within
from sparsekern.train.recipe_patterns import RecipePattern, written_pattern

STRICT = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


@dataclass(frozen=True)
class Section:
    """Marks a recipe field that holds one entry of a registry: ``Annotated[Method, Section(...)]``.

    In a file it is a mapping of ``name`` and the fields of the dataclass of that name, or the name
    alone; in Python it is the dataclass.

    Args:
        key: of the field, for error sentences.
        registry: the known dataclasses by name.
    """

    key: str
    registry: Registry[Any]

    def __get_pydantic_core_schema__(
        self, source: type, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        def read(value: Any) -> Any:
            return value if isinstance(value, source) else self.build(value)

        return core_schema.no_info_plain_validator_function(
            read, serialization=core_schema.plain_serializer_function_ser_schema(self.options)
        )

    def options(self, value: Any) -> dict[str, Any]:
        """The section of a file that gives ``value`` again."""
        name = next(name for name in self.registry if self.registry[name] is type(value))
        options = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        for option, chosen in options.items():
            if isinstance(chosen, Pattern):
                options[option] = written_pattern(chosen)
        return {"name": name} | options

    def build(self, value: Any) -> Any:
        """The dataclass that a file's section means. Raises ValueError with one sentence."""
        if isinstance(value, str):
            value = {"name": value}
        if not isinstance(value, Mapping):
            raise ValueError(f"Expected {self.key} to be a name or a mapping. Got {shown(value)}.")
        entry = self._entry(value.get("name"))
        filled = validate(_options_model(entry), dict(value), self.key)
        given = {option: getattr(filled, option) for option in filled.model_fields_set - {"name"}}
        try:
            return entry(**given)
        except (ValueError, TypeError, NotImplementedError) as error:
            raise ValueError(within(self.key, str(error), type(filled).model_fields)) from None

    def _entry(self, name: Any) -> type:
        key = dotted(self.key, "name")
        if not isinstance(name, str):
            known, got = ", ".join(sorted(self.registry)), "nothing" if name is None else name
            raise ValueError(f"Expected {key} to be one of {known}. Got {got}.")
        try:
            entry: type = self.registry[name]
        except ValueError as error:
            sentence = str(error).removeprefix(f"Expected {self.registry.kind} ")
            raise ValueError(f"Expected {key} {sentence}") from None
        return entry


@functools.cache
def _options_model(entry: type) -> type[BaseModel]:
    """A pydantic model with the fields of a dataclass: their names, types and defaults."""
    types = typing.get_type_hints(entry)
    fields: dict[str, Any] = {"name": (str, ...)}
    for field in dataclasses.fields(entry):
        kind = types[field.name]
        required = field.default is dataclasses.MISSING
        fields[field.name] = (
            RecipePattern if kind is Pattern else kind,
            ... if required else field.default,
        )
    make: Callable[..., type[BaseModel]] = create_model
    return make(entry.__name__, __config__=STRICT, **fields)
