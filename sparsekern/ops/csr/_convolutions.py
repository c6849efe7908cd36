"""Convolutions the csr ops are tested and timed on, the ugly ones included."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Pair = tuple[int, int]


@dataclass(frozen=True)
class Convolution:
    """One sample's sizes."""

    name: str
    input_shape: tuple[int, int, int, int]
    out_channels: int
    kernel_size: Pair
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1
    density: float = 0.3
    bias: bool = True
    small: bool = False

    @property
    def channels(self) -> int:
        return self.input_shape[1]

    @property
    def geometry(self) -> dict[str, Any]:
        """The op's keyword-only arguments."""
        names = ("kernel_size", "stride", "padding", "dilation", "groups")
        return {name: getattr(self, name) for name in names}

    def mask(self) -> Tensor:
        """The sample's mask, the same in every process."""
        generator = torch.Generator().manual_seed(sum(map(ord, self.name)))
        shape = (self.out_channels, self.channels // self.groups, *self.kernel_size)
        kept = torch.rand(shape, generator=generator) < self.density
        if self.name == "one_row":
            kept[:] = False
            kept[self.out_channels // 2] = True
        return kept


C = Convolution
CONVOLUTIONS = (
    C("typical", (3, 20, 16, 16), 34, (3, 3), padding=(1, 1), density=0.15),
    C("tiny", (2, 2, 4, 3), 3, (2, 3), padding=(1, 1), small=True, density=0.5),
    C("tiny_strided", (2, 4, 5, 6), 2, (3, 2), (2, 3), (1, 2), groups=2, small=True, density=0.6),
    C("pointwise", (2, 40, 7, 9), 33, (1, 1), density=0.2),
    C("pointwise_strided", (2, 12, 9, 8), 10, (1, 1), stride=(2, 2)),
    C("strided", (2, 18, 17, 15), 20, (3, 3), stride=(2, 2), padding=(1, 1)),
    C("strided_wide", (2, 6, 20, 33), 9, (5, 5), stride=(2, 2), padding=(2, 2)),
    C("stride_three", (1, 5, 14, 13), 6, (3, 4), stride=(3, 3), padding=(2, 1)),
    C("stride_above_kernel", (1, 4, 11, 12), 5, (2, 2), stride=(3, 4)),
    C("mixed_strides", (1, 7, 12, 13), 6, (3, 3), stride=(1, 2), padding=(0, 1)),
    C("dilated", (2, 8, 15, 18), 11, (3, 3), padding=(2, 3), dilation=(2, 3)),
    C("dilated_strided", (1, 6, 19, 16), 8, (3, 3), (2, 2), (4, 2), (4, 3)),
    C("far_dilation", (1, 3, 40, 34), 4, (3, 3), padding=(15, 16), dilation=(15, 16)),
    C("rectangular", (2, 9, 8, 21), 12, (1, 7), padding=(0, 3)),
    C("tall", (2, 9, 21, 6), 12, (7, 1), padding=(3, 0)),
    C("large_kernel", (1, 3, 30, 70), 8, (11, 11), (4, 4), (2, 2), density=0.1),
    C("stem", (1, 3, 36, 38), 16, (7, 7), (2, 2), (3, 3), density=0.5),
    C("grouped", (2, 24, 9, 10), 36, (3, 3), padding=(1, 1), groups=3),
    C("depthwise", (2, 40, 13, 12), 40, (3, 3), padding=(1, 1), groups=40, density=0.6),
    C("depthwise_twice", (1, 6, 8, 8), 12, (3, 3), (2, 2), (1, 1), groups=6, density=0.6),
    C("one_pixel", (5, 70, 1, 1), 40, (1, 1)),
    C("small_images", (19, 12, 4, 4), 18, (3, 3), padding=(1, 1)),
    C("small_strided", (7, 12, 8, 8), 18, (3, 3), (2, 2), (1, 1)),
    C("seven", (3, 16, 7, 7), 40, (3, 3), padding=(1, 1)),
    C("wide", (1, 4, 3, 150), 5, (3, 3), padding=(1, 1)),
    C("many_rows", (1, 9, 6, 6), 300, (3, 3), padding=(1, 1), density=0.1),
    C("many_channels", (1, 400, 8, 8), 10, (3, 3), padding=(1, 1), density=0.03),
    C("many_tiles", (70, 6, 8, 8), 7, (3, 3), padding=(1, 1)),
    C("kernel_above_image", (2, 4, 2, 3), 5, (5, 5), padding=(2, 2)),
    C("padding_above_kernel", (1, 4, 5, 4), 5, (2, 2), padding=(4, 3)),
    C("empty", (2, 5, 6, 6), 7, (3, 3), padding=(1, 1), density=0.0),
    C("dense", (1, 5, 6, 6), 7, (3, 3), padding=(1, 1), density=1.0, bias=False),
    C("one_row", (2, 20, 9, 9), 33, (3, 3), padding=(1, 1)),
    C("one_output", (2, 20, 9, 9), 1, (3, 3), padding=(1, 1)),
    C("no_batch", (0, 4, 5, 5), 3, (3, 3)),
)
