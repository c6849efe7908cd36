"""VGG networks in the form for CIFAR: batch norm, and one classifier behind the convolutions."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from sparsekern.models.model import MODELS, Model, is_image

# depth -> convolutions of each stage
DEPTHS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
CHANNELS = (64, 128, 256, 512, 512)  # of each stage
LEAST = 2 ** len(CHANNELS)  # pixels each way, as every stage ends in pooling


def vgg(
    in_channels: int, classes: int, blocks: Sequence[int], channels: Sequence[int]
) -> nn.Sequential:
    """Stages of 3x3 convolutions, each with batch norm and ReLU; 2x2 max pooling ends a stage.

    Takes ``[batch, in_channels, height, width]`` of at least ``2 ** stages`` pixels each way, gives
    logits ``[batch, classes]``. After the last stage the pixels that are left are averaged (of
    CIFAR's 32x32 there is one). The layers are called ``conv0``, ``norm0``, ``relu0``, ``conv1``,
    ..., ``pool0`` to ``pool4``, ``output``.

    Args:
        in_channels: of the images.
        classes: number of logits.
        blocks: convolutions of each stage.
        channels: of each stage.
    """
    layers: dict[str, nn.Module] = {}
    sizes = [size for number, size in zip(blocks, channels, strict=True) for _ in range(number)]
    ends = [sum(blocks[: i + 1]) for i in range(len(blocks))]
    for i, size in enumerate(sizes):
        conv = nn.Conv2d(in_channels, size, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        layers |= {f"conv{i}": conv, f"norm{i}": nn.BatchNorm2d(size), f"relu{i}": nn.ReLU()}
        if i + 1 in ends:
            layers[f"pool{ends.index(i + 1)}"] = nn.MaxPool2d(2)
        in_channels = size
    layers["mean"] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    layers["output"] = nn.Linear(in_channels, classes)
    return nn.Sequential(OrderedDict(layers))


@dataclass(frozen=True, kw_only=True)
class VGG(Model):
    """Configuration of :func:`vgg`.

    Args:
        depth: 11, 13, 16 or 19; of VGG-16, 13 are convolutions.
        width: see :class:`Model`; a factor on the channels.

    Reference: Simonyan and Zisserman, Very deep convolutional networks, 2015, table 1 (A, B, D, E).
    Differs as is usual for CIFAR: batch norm behind every convolution, and one Linear layer in
    place of three with dropout. Weights start from He's normal distribution of the fan-out.
    """

    depth: int

    samples: ClassVar[str] = "images [channels, height, width]"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.depth not in DEPTHS:
            known = ", ".join(map(str, sorted(DEPTHS)))
            raise ValueError(f"Expected depth to be one of {known}. Got {self.depth}.")

    def fits(self, input_shape: tuple[int, ...], vocabulary: int | None) -> bool:
        return is_image(input_shape, vocabulary)

    def network(
        self, input_shape: tuple[int, ...], classes: int, vocabulary: int | None
    ) -> nn.Module:
        if min(input_shape[1:]) < LEAST:
            raise ValueError(
                f"Expected images of at least {LEAST}x{LEAST} pixels for five stages that end in "
                f"pooling. Got {input_shape[1]}x{input_shape[2]}."
            )
        channels = [self.scaled(size) for size in CHANNELS]
        return vgg(input_shape[0], classes, DEPTHS[self.depth], channels)


MODELS.add("vgg", VGG)
