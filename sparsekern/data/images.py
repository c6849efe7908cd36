"""What happens to batches of images: standardisation and augmentation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Standardize:
    """``(pixel - mean) / deviation`` of each channel, as float32.

    Images stay uint8 in memory, a quarter of the bytes, and become numbers batch by batch.

    Attributes:
        mean, deviation: float32 ``[channels, 1, 1]``, in the unit of the pixels.
    """

    mean: Tensor
    deviation: Tensor

    @classmethod
    def of(cls, pixels: Tensor) -> Standardize:
        """By the statistics of uint8 pixels ``[samples, channels, height, width]``.

        They come from the counts of the 256 values, exactly and without a copy in floating point.
        A channel of one value gets deviation 1.
        """
        values = torch.arange(256, dtype=torch.float64)
        means, deviations = [], []
        for channel in pixels.unbind(1):
            counts = torch.bincount(channel.flatten(), minlength=256).double()
            share = counts / channel.numel()
            mean = (share * values).sum()
            means.append(mean)
            deviations.append((share * (values - mean) ** 2).sum().sqrt())
        mean, deviation = torch.stack(means), torch.stack(deviations)
        deviation[deviation == 0] = 1.0
        return cls(mean.float().view(-1, 1, 1), deviation.float().view(-1, 1, 1))

    def __call__(self, pixels: Tensor) -> Tensor:
        return pixels.to(torch.float32).sub_(self.mean).div_(self.deviation)


@dataclass(frozen=True)
class CropAndFlip:
    """Pads every image with zeros, cuts out its old size at a random place, flips half of them.

    Attributes:
        padding: pixels on each side.

    Reference: He et al., Deep residual learning, 2016, section 4.2 (padding 4).
    """

    padding: int = 4

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """``[samples, channels, height, width]`` of any dtype to the same, contiguous."""
        samples, channels, height, width = images.shape
        places = 2 * self.padding + 1
        top = torch.randint(places, (samples, 1), generator=generator)
        left = torch.randint(places, (samples, 1), generator=generator)
        flipped = torch.randint(2, (samples, 1), generator=generator).bool()
        rows = top + torch.arange(height)
        columns = torch.arange(width)
        columns = left + torch.where(flipped, columns.flip(0), columns)
        return F.pad(images, [self.padding] * 4)[
            torch.arange(samples)[:, None, None, None],
            torch.arange(channels)[None, :, None, None],
            rows[:, None, :, None],
            columns[:, None, None, :],
        ]
