"""Residual networks of basic blocks: ResNet-18 and -34, and the ResNets of CIFAR."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from sparsekern.models.model import MODELS, Model, is_image

# depth -> blocks of each stage, channels of the first (each stage doubles them)
DEPTHS = {
    18: ((2, 2, 2, 2), 64),
    34: ((3, 4, 6, 3), 64),
    20: ((3, 3, 3), 16),
    32: ((5, 5, 5), 16),
    44: ((7, 7, 7), 16),
    56: ((9, 9, 9), 16),
}
STEMS = ("cifar", "imagenet")
SHORTCUTS = ("paper", "pad", "projection")


class PadShortcut(nn.Module):
    """Every second pixel, and zeros for the channels that are new: half before, half behind.

    ``[batch, in_channels, height, width]`` to ``[batch, out_channels, height / 2, width / 2]``,
    without a parameter: option A of the paper.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        new = out_channels - in_channels
        self.before, self.behind = new // 2, new - new // 2

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.before, self.behind))


class BasicBlock(nn.Module):
    """``relu(norm(conv(relu(norm(conv(x))))) + shortcut(x))`` with 3x3 convolutions.

    Args:
        in_channels, out_channels: of the images.
        stride: of the first convolution, 1 or 2.
        shortcut: what becomes of ``x``; None: nothing.
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, shortcut: nn.Module | None
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.relu2 = nn.ReLU()
        self.downsample = shortcut

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu1(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return self.relu2(y + (x if self.downsample is None else self.downsample(x)))


class ResidualNetwork(nn.Module):
    """A residual network; its layers have the names that torchvision's have.

    Takes ``[batch, in_channels, height, width]``, gives logits ``[batch, classes]``.

    Args:
        in_channels: of the images.
        classes: number of logits.
        blocks: of each stage; every stage but the first halves height and width.
        channels: of each stage.
        imagenet_stem: a 7x7 convolution of stride 2 and 3x3 max pooling of stride 2 at the
            beginning, in place of a 3x3 convolution.
        projection: 1x1 convolutions where a shortcut changes the shape (option B of the paper), in
            place of :class:`PadShortcut`.
    """

    def __init__(
        self,
        in_channels: int,
        classes: int,
        blocks: Sequence[int],
        channels: Sequence[int],
        *,
        imagenet_stem: bool,
        projection: bool,
    ) -> None:
        super().__init__()
        size, stride = (7, 2) if imagenet_stem else (3, 1)
        self.conv1 = nn.Conv2d(in_channels, channels[0], size, stride, size // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(channels[0])
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, 2, 1) if imagenet_stem else nn.Identity()
        self.stages = [f"layer{i + 1}" for i in range(len(blocks))]
        own = channels[0]
        for i, (name, number, wide) in enumerate(zip(self.stages, blocks, channels, strict=True)):
            stride = 1 if i == 0 else 2
            stage = nn.Sequential()
            for j in range(number):
                shortcut = _shortcut(own, wide, projection) if i > 0 and j == 0 else None
                stage.append(BasicBlock(own, wide, stride if j == 0 else 1, shortcut))
                own = wide
            self.add_module(name, stage)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(own, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for name in self.stages:
            x = self.get_submodule(name)(x)
        return self.fc(self.avgpool(x).flatten(1))


def _shortcut(in_channels: int, out_channels: int, projection: bool) -> nn.Module:
    if not projection:
        return PadShortcut(in_channels, out_channels)
    convolution = nn.Conv2d(in_channels, out_channels, 1, stride=2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(out_channels))


@dataclass(frozen=True, kw_only=True)
class ResNet(Model):
    """Configuration of :class:`ResidualNetwork`.

    Args:
        depth: 18 or 34 (four stages, 64 to 512 channels), or 20, 32, 44, 56 (three stages, 16 to
            64 channels: the networks of CIFAR).
        stem: "cifar" (a 3x3 convolution) or "imagenet" (7x7 of stride 2, then max pooling).
        shortcut: where the shape changes: "pad" (option A, without parameters), "projection"
            (option B), or "paper": "pad" for the networks of CIFAR, else "projection".
        width: see :class:`Model`; a factor on the channels.

    Reference: He et al., Deep residual learning, 2016, table 1 and section 4.2. Weights start from
    He's normal distribution of the fan-out.
    """

    depth: int
    stem: str = "cifar"
    shortcut: str = "paper"

    samples: ClassVar[str] = "images [channels, height, width]"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.depth not in DEPTHS:
            known = ", ".join(map(str, sorted(DEPTHS)))
            raise ValueError(f"Expected depth to be one of {known}. Got {self.depth}.")
        for name, known_names in (("stem", STEMS), ("shortcut", SHORTCUTS)):
            if getattr(self, name) not in known_names:
                raise ValueError(
                    f"Expected {name} to be one of {', '.join(known_names)}. "
                    f"Got {getattr(self, name)!r}."
                )

    def fits(self, input_shape: tuple[int, ...], vocabulary: int | None) -> bool:
        return is_image(input_shape, vocabulary)

    def network(
        self, input_shape: tuple[int, ...], classes: int, vocabulary: int | None
    ) -> nn.Module:
        blocks, channels = DEPTHS[self.depth]
        paper = "pad" if len(blocks) == 3 else "projection"
        return ResidualNetwork(
            input_shape[0],
            classes,
            blocks,
            [self.scaled(channels * 2**i) for i in range(len(blocks))],
            imagenet_stem=self.stem == "imagenet",
            projection=(paper if self.shortcut == "paper" else self.shortcut) == "projection",
        )


MODELS.add("resnet", ResNet)
