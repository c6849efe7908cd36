"""``Recipe``: everything that a training run depends on, in one frozen value."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from sparsekern.data import DATASETS, Source
from sparsekern.formats import FORMATS
from sparsekern.models import MODELS, Model
from sparsekern.prune import METHODS, Method
from sparsekern.prune.select import check_format
from sparsekern.train.device import PRECISIONS, check_device_name, find_device
from sparsekern.train.learning_rate import SCHEDULES, Schedule
from sparsekern.train.optimizers import OPTIMIZERS, Optimizer
from sparsekern.train.recipe_errors import validate, within
from sparsekern.train.recipe_sections import STRICT, Section

Count = Annotated[int, Field(gt=0)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]


class Baselines(BaseModel):
    """Which networks the sparse one is compared with.

    Attributes:
        dense: the same network without pruning.
        small_dense: a dense network with narrower hidden layers and the sparse one's step time.
        small_dense_width: its factor on the hidden sizes; null: found by measuring, once.
    """

    model_config = STRICT

    dense: bool = True
    small_dense: bool = True
    small_dense_width: Annotated[float, Field(gt=0)] | None = None


class Recipe(BaseModel):
    """A training run. Unknown keys are refused; the same recipe and seed give the same bits (with
    ``tune`` only a resumed run does, because time has a say).

    Attributes:
        name: of the recipe, and of its runs' folder.
        description: one line, for ``sparsekern recipes``.
        data, model, method, optimizer, learning_rate: registered dataclasses (in a file: their
            ``name`` and options; a method's ``pattern`` is ``unstructured``,
            ``fan_in`` or ``{block: [height, width]}``).
        batch_size: samples of a training step.
        epochs: passes over the training data.
        seed: of the first training; weights, masks and batches follow from it.
        seeds: number of trainings, with ``seed``, ``seed + 1``, ...
        exclude: names of layers to leave dense, as fnmatch patterns.
        format: "auto" or a format's name for all sparse layers.
        compact: whether dense masters become compact after the last change of topology.
        tune: whether the kernels of each layer are measured before the first step and again at the
            final density (:func:`sparsekern.tune`); by default a fixed rule chooses them.
        device: "auto" (the GPU where there is one), "cpu", "cuda" or "cuda:<number>".
        precision: "float32", or "bfloat16" or "float16" for the forward pass under autocast, with
            float32 weights (and scaled gradients for float16).
        baselines: what else is trained.
        checkpoint_every: epochs between two checkpoints; the end of a training is always one.
    """

    model_config = ConfigDict(**STRICT, arbitrary_types_allowed=True)

    name: str
    description: str = ""
    data: Annotated[Source, Section("data", DATASETS)]
    model: Annotated[Model, Section("model", MODELS)]
    method: Annotated[Method, Section("method", METHODS)]
    optimizer: Annotated[Optimizer, Section("optimizer", OPTIMIZERS)]
    learning_rate: Annotated[Schedule, Section("learning_rate", SCHEDULES)]
    batch_size: Count
    epochs: Count
    seed: Seed = 0
    seeds: Count = 1
    exclude: tuple[str, ...] = ()
    format: str = "auto"
    compact: bool = False
    tune: bool = False
    device: str = "auto"
    precision: str = "float32"
    baselines: Baselines = Baselines()
    checkpoint_every: Count = 10

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        check_folder_name(name, "name")
        return name

    @field_validator("format")
    @classmethod
    def _check_format(cls, format: str) -> str:
        if format != "auto" and format not in FORMATS:
            known = ", ".join(["auto", *sorted(FORMATS)])
            raise ValueError(f"Expected format to be one of {known}. Got {format!r}.")
        return format

    @field_validator("device")
    @classmethod
    def _check_device(cls, device: str) -> str:
        check_device_name(device)
        return device

    @field_validator("precision")
    @classmethod
    def _check_precision(cls, precision: str) -> str:
        if precision not in PRECISIONS:
            known = ", ".join(PRECISIONS)
            raise ValueError(f"Expected precision to be one of {known}. Got {precision!r}.")
        return precision

    @model_validator(mode="after")
    def _check_blocks(self) -> Recipe:
        try:
            check_format(self.format, self.method.pattern)
        except ValueError as error:
            raise ValueError(within("method", str(error), ("pattern",))) from None
        return self

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Recipe:
        """The recipe in a file's values. Raises ValueError with one sentence."""
        recipe: Recipe = validate(cls, _tuples(values))
        return recipe

    def to_dict(self) -> dict[str, Any]:
        """Plain values with every default filled in; ``from_dict`` gives the same recipe again."""
        return self.model_dump(mode="json")

    def on_this_machine(self) -> Recipe:
        """The recipe with the device that its own means here, by which an interrupted run knows
        where it was. Raises ValueError for a device that is not there."""
        return self.model_copy(update={"device": str(find_device(self.device))})

    def with_small_dense_width(self, width: float | None) -> Recipe:
        """The recipe with the width of the smaller dense network filled in."""
        baselines = self.baselines.model_copy(update={"small_dense_width": width})
        return self.model_copy(update={"baselines": baselines})

    def is_continued_by(self, other: Recipe) -> bool:
        """Whether a run of ``other`` may go on where a run of this recipe was stopped.

        The width of the smaller dense network may have been found since.
        """
        width = other.baselines.small_dense_width
        return self == other or (width is None and self.with_small_dense_width(None) == other)

    @property
    def digest(self) -> str:
        """Hash of what decides the dense and the sparse training."""
        values = self.to_dict()
        for key in ("description", "seeds", "baselines", "checkpoint_every"):
            del values[key]
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def check_folder_name(name: str, key: str) -> None:
    """Raises ValueError unless ``name`` can be the name of a folder everywhere."""
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name) is None:
        raise ValueError(
            f"Expected {key} to consist of letters, digits, '.', '_' and '-'. Got {name!r}."
        )


def _tuples(value: Any) -> Any:
    """Lists as tuples, which is what frozen values hold."""
    if isinstance(value, (list, tuple)):
        return tuple(_tuples(each) for each in value)
    if isinstance(value, dict):
        return {key: _tuples(each) for key, each in value.items()}
    return value
