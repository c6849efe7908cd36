"""A small convolutional network."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from sparsekern._checks import check_positive
from sparsekern.models.model import MODELS, Model, is_image


def cnn(in_channels: int, classes: int, channels: Sequence[int]) -> nn.Sequential:
    """Blocks of a 3x3 convolution, batch norm and ReLU, with 2x2 max pooling between the blocks.

    Takes ``[batch, in_channels, height, width]`` of at least ``2 ** (blocks - 1)`` pixels each way,
    gives logits ``[batch, classes]``. After the last block the pixels are averaged. The layers are
    called ``conv0``, ``norm0``, ``relu0``, ``pool0``, ``conv1``, ..., ``output``.
    """
    layers: dict[str, nn.Module] = {}
    for i, size in enumerate(channels):
        if i > 0:
            layers[f"pool{i - 1}"] = nn.MaxPool2d(2)
        layers[f"conv{i}"] = nn.Conv2d(in_channels, size, 3, padding=1, bias=False)
        layers[f"norm{i}"] = nn.BatchNorm2d(size)
        layers[f"relu{i}"] = nn.ReLU()
        in_channels = size
    layers["mean"] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    layers["output"] = nn.Linear(in_channels, classes)
    return nn.Sequential(OrderedDict(layers))


@dataclass(frozen=True, kw_only=True)
class CNN(Model):
    """Configuration of :func:`cnn`.

    Args:
        channels: of the blocks, at width 1.
        width: see :class:`Model`.
    """

    channels: tuple[int, ...] = (64, 128, 256)

    samples: ClassVar[str] = "images [channels, height, width]"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.channels:
            raise ValueError("Expected channels to have at least one size. Got none.")
        for size in self.channels:
            check_positive(size, "channels")

    def fits(self, input_shape: tuple[int, ...], vocabulary: int | None) -> bool:
        return is_image(input_shape, vocabulary)

    def network(
        self, input_shape: tuple[int, ...], classes: int, vocabulary: int | None
    ) -> nn.Module:
        least = 2 ** (len(self.channels) - 1)
        if min(input_shape[1:]) < least:
            raise ValueError(
                f"Expected images of at least {least}x{least} pixels for {len(self.channels)} "
                f"blocks with pooling between them. Got {input_shape[1]}x{input_shape[2]}."
            )
        return cnn(input_shape[0], classes, [self.scaled(size) for size in self.channels])


MODELS.add("cnn", CNN)
