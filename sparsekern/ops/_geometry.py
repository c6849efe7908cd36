"""Kernel sizes, strides, paddings and dilations: what every convolution op asks of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def check_geometry(
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> None:
    """Raises ValueError unless these are pairs of numbers of at least 1 (padding: 0)."""
    for name, pair, least in (
        ("kernel_size", kernel_size, 1),
        ("stride", stride, 1),
        ("padding", padding, 0),
        ("dilation", dilation, 1),
    ):
        if len(pair) != 2 or min(pair) < least:
            raise ValueError(
                f"Expected {name} to be two numbers of at least {least}. Got {tuple(pair)}."
            )


def output_size(
    size: Sequence[int],
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> list[int]:
    """Height and width of the output, by torch's formula."""
    return [
        (size[i] + 2 * padding[i] - dilation[i] * (kernel_size[i] - 1) - 1) // stride[i] + 1
        for i in range(2)
    ]


def memory_format(x: Tensor) -> torch.memory_format:
    """channels_last for images that are so and not contiguous as well, else NCHW."""
    last = not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


def empty_images(shape: Sequence[int], like: Tensor) -> Tensor:
    """Uninitialised images of the dtype, device and memory format of ``like``."""
    return torch.empty(
        tuple(shape), dtype=like.dtype, device=like.device, memory_format=memory_format(like)
    )
