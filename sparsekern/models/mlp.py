"""A multi-layer perceptron."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from sparsekern._checks import check_positive
from sparsekern.models.model import MODELS, Model


def mlp(in_features: int, classes: int, hidden: Sequence[int]) -> nn.Sequential:
    """Linear layers with ReLU between them: ``in_features -> hidden... -> classes``.

    Takes ``[batch, ...]`` of ``in_features`` numbers a sample, gives logits ``[batch, classes]``.
    The linear layers are called ``hidden0``, ``hidden1``, ..., ``output``.
    """
    layers: dict[str, nn.Module] = {"flatten": nn.Flatten()}
    for i, size in enumerate(hidden):
        layers[f"hidden{i}"] = nn.Linear(in_features, size)
        layers[f"relu{i}"] = nn.ReLU()
        in_features = size
    layers["output"] = nn.Linear(in_features, classes)
    return nn.Sequential(OrderedDict(layers))


@dataclass(frozen=True, kw_only=True)
class MLP(Model):
    """Configuration of :func:`mlp`.

    Args:
        hidden: sizes of the hidden layers, at width 1.
        width: see :class:`Model`.
    """

    hidden: tuple[int, ...]

    samples: ClassVar[str] = "numbers"

    def __post_init__(self) -> None:
        super().__post_init__()
        for size in self.hidden:
            check_positive(size, "hidden")

    def fits(self, input_shape: tuple[int, ...], vocabulary: int | None) -> bool:
        return vocabulary is None

    def network(
        self, input_shape: tuple[int, ...], classes: int, vocabulary: int | None
    ) -> nn.Module:
        return mlp(math.prod(input_shape), classes, [self.scaled(size) for size in self.hidden])


MODELS.add("mlp", MLP)
