"""Convolutions the bsr ops are tested and timed on, the ugly ones included."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sparsekern.ops._define import Sample
from sparsekern.ops.bsr.index import index_from_mask
from sparsekern.ops.csr._checks import VALUE_DTYPES
from sparsekern.ops.csr._convolutions import Convolution, Pair, _output_shape


@dataclass(frozen=True)
class BlockConvolution(Convolution):
    """One sample's sizes, with the shape of its blocks."""

    block: Pair = (4, 4)

    def mask(self) -> Tensor:
        """Of the blocks, the same in every process."""
        generator = torch.Generator().manual_seed(sum(map(ord, self.name)))
        columns = math.prod(self.kernel_size) * self.channels // self.groups
        shape = (self.out_channels // self.block[0], columns // self.block[1])
        return torch.rand(shape, generator=generator) < self.density


C = BlockConvolution
CONVOLUTIONS = (
    C("typical", (3, 32, 7, 6), 48, (3, 3), padding=(1, 1), block=(16, 16)),
    C("tiny", (2, 2, 4, 3), 4, (2, 3), padding=(1, 1), small=True, density=0.5, block=(2, 2)),
    C("tiny_strided", (1, 4, 5, 6), 4, (3, 2), (2, 3), (1, 2), (1, 1), 2, 0.6, True, True, (1, 2)),
    C("pointwise", (2, 40, 7, 9), 32, (1, 1), block=(8, 8)),
    C("pointwise_strided", (2, 12, 9, 8), 10, (1, 1), stride=(2, 2), block=(5, 3)),
    C("strided", (2, 16, 17, 15), 24, (3, 3), stride=(2, 2), padding=(1, 1), block=(8, 16)),
    C("strided_wide", (2, 6, 20, 33), 9, (5, 5), stride=(2, 2), padding=(2, 2), block=(3, 2)),
    C("stride_three", (1, 5, 14, 13), 6, (3, 4), stride=(3, 3), padding=(2, 1), block=(6, 5)),
    C("stride_above_kernel", (1, 4, 11, 12), 5, (2, 2), stride=(3, 4), block=(1, 4)),
    C("mixed_strides", (1, 7, 12, 13), 6, (3, 3), stride=(1, 2), padding=(0, 1), block=(2, 7)),
    C("dilated", (2, 8, 9, 11), 12, (3, 3), padding=(2, 3), dilation=(2, 3)),
    C("dilated_strided", (1, 8, 19, 16), 8, (3, 3), (2, 2), (4, 2), (4, 3), block=(8, 8)),
    C("far_dilation", (1, 4, 40, 34), 4, (3, 3), padding=(15, 16), dilation=(15, 16)),
    C("rectangular", (2, 9, 8, 21), 12, (1, 7), padding=(0, 3), block=(12, 1)),
    C("tall", (2, 9, 21, 6), 12, (7, 1), padding=(3, 0), block=(1, 9)),
    C("large_kernel", (1, 3, 30, 70), 8, (11, 11), (4, 4), (2, 2), density=0.1, block=(8, 1)),
    C("grouped", (2, 24, 9, 10), 36, (3, 3), padding=(1, 1), groups=3, block=(4, 8)),
    C("over_groups", (2, 8, 6, 6), 12, (3, 3), padding=(1, 1), groups=2, block=(12, 4)),
    C("depthwise", (2, 40, 13, 12), 40, (3, 3), (1, 1), (1, 1), (1, 1), 40, 0.6, block=(1, 1)),
    C("one_pixel", (5, 70, 1, 1), 40, (1, 1), block=(8, 35)),
    C("small_images", (19, 12, 4, 4), 20, (3, 3), padding=(1, 1)),
    C("seven", (3, 16, 7, 7), 40, (3, 3), padding=(1, 1), block=(8, 8)),
    C("wide", (1, 4, 3, 150), 8, (3, 3), padding=(1, 1)),
    C("many_images", (300, 4, 24, 24), 4, (3, 3), padding=(1, 1)),
    C("kernel_above_image", (2, 4, 2, 3), 8, (5, 5), padding=(2, 2)),
    C("padding_above_kernel", (1, 4, 5, 4), 8, (2, 2), padding=(4, 3)),
    C("empty", (2, 4, 6, 6), 8, (3, 3), padding=(1, 1), density=0.0),
    C("dense", (1, 4, 6, 6), 8, (3, 3), padding=(1, 1), density=1.0, bias=False),
    C("one_row", (2, 64, 9, 9), 64, (3, 3), padding=(1, 1), block=(64, 64)),
    C("strided_blocks", (2, 32, 11, 10), 32, (3, 3), (2, 2), (1, 1), block=(16, 32)),
    C("mixed_blocks", (3, 16, 9, 8), 64, (2, 3), (1, 3), (1, 2), (2, 1), block=(64, 16)),
    C("pointwise_blocks", (2, 48, 7, 5), 16, (1, 1), stride=(2, 1), block=(16, 48)),
    C("large_blocks", (1, 128, 5, 6), 128, (3, 3), padding=(2, 0), block=(128, 128)),
    C("many_pixels", (9, 16, 8, 9), 16, (1, 2), density=1.0, block=(16, 16)),
    C("no_batch", (0, 4, 5, 5), 4, (3, 3)),
)


def samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    """Arguments of ``bsr_conv2d``."""
    value_dtype = dtype if dtype in VALUE_DTYPES else torch.float32
    generator = torch.Generator().manual_seed(0)
    for case in CONVOLUTIONS:
        index = index_from_mask(case.mask().to(device))
        x = torch.randn(case.input_shape, generator=generator).to(device, dtype)
        values = torch.randn(index.blocks, *case.block, generator=generator).to(device, value_dtype)
        bias = torch.randn(case.out_channels, generator=generator).to(device, value_dtype)
        args: tuple[Any, ...] = (x, values, bias if case.bias else None, None, *index)
        yield Sample(args, case.name, case.geometry, small=case.small)
        if case.small:
            columns = case.channels // case.groups * math.prod(case.kernel_size)
            zero = torch.zeros((), device=device, dtype=value_dtype)
            probe = zero.expand(case.out_channels, columns)
            args = (x, values, args[2], probe, *index)
            yield Sample(args, f"{case.name}_probe", case.geometry, small=True, promise=True)
        if case.name == "typical":
            turned = x.transpose(2, 3).contiguous().transpose(2, 3)
            yield Sample((turned, *args[1:]), "strided", case.geometry)
            last = x.to(memory_format=torch.channels_last)
            yield Sample((last, *args[1:]), "channels_last", case.geometry)
            yield Sample((x[::2], *args[1:]), "every_second_image", case.geometry)


def backward_samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    """Arguments of ``bsr_conv2d_backward``."""
    for sample in samples(device, dtype):
        x, values, bias, _, *index = sample.args
        _, channels, *size = _output_shape(x, index[0], **sample.kwargs)
        shape = (x.shape[0], channels * values.shape[1], *size)
        grad = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(device, dtype)
        mask = [True, True, bias is not None]
        args = (grad, x, values, *index, mask)
        yield Sample(args, sample.id, sample.kwargs, small=sample.small)
        if sample.id == "typical":
            for i in range(3):
                only = [i == j for j in range(3)]
                yield Sample((*args[:-1], only), f"only_{i}", sample.kwargs)
            expanded = grad[:1].expand(grad.shape)
            yield Sample((expanded, *args[1:]), "expanded_grad", sample.kwargs)


def _wrong() -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    case = BlockConvolution("errors", (1, 4, 5, 5), 6, (3, 3), density=0.5, block=(3, 2))
    index = index_from_mask(case.mask())
    return torch.zeros(case.input_shape), torch.zeros(index.blocks, 3, 2), tuple(index)


def errors() -> Iterator[tuple[Any, type[Exception], str]]:
    """Wrong arguments of ``bsr_conv2d``."""
    x, values, index = _wrong()

    def with_(first: Any = x, second: Any = values, *rest: Any, **changes: Any) -> Sample:
        args = (first, second, *(rest or (None, None)), *index)
        return Sample(args, "", {"kernel_size": (3, 3), **changes})

    yield with_(None), TypeError, "Expected x to be a tensor"
    yield with_(x[0]), ValueError, "Expected x to have 4 dimensions"
    yield with_(x[:, :3]), ValueError, "Expected x to have 4 channels"
    yield with_(x[..., :2]), ValueError, "Expected x to be as large as the kernel, (3, 3)"
    yield with_(x.long()), TypeError, "Expected x to have dtype"
    yield with_(x.double()), TypeError, "Expected x and values to be float64"
    yield with_(x, values.half()), TypeError, "Expected values to have dtype"
    yield with_(x, values[:2]), ValueError, "Expected values to have shape"
    yield with_(x, values[0]), ValueError, "Expected values to have 3 dimensions"
    yield with_(x, values[:, :0]), ValueError, "Expected values to have blocks with elements"
    yield with_(x, values, torch.zeros(5), None), ValueError, "Expected bias to have shape"
    yield with_(x, values, None, torch.zeros(3)), ValueError, "Expected probe to have shape"
    yield with_(groups=4), ValueError, "Expected groups to divide 6 output channels"
    yield with_(groups=2), ValueError, "Expected x to have 8 channels"
    yield with_(kernel_size=(5, 1)), ValueError, "Expected each of 5 taps to have whole blocks of 2"
    for name, pair, least in (
        ("stride", (0, 1), 1),
        ("padding", (0, -1), 0),
        ("dilation", (1,), 1),
    ):
        yield (
            with_(**{name: pair}),
            ValueError,
            f"Expected {name} to be two numbers of at least {least}",
        )


def backward_errors() -> Iterator[tuple[Any, type[Exception], str]]:
    """Wrong arguments of ``bsr_conv2d_backward``."""
    x, values, index = _wrong()
    mask, geometry = [True, True, True], {"kernel_size": (3, 3)}
    grad = torch.zeros(1, 6, 3, 3)
    for wrong, wanted, kind, sentence in (
        (grad[:, :, 1:], mask, ValueError, "Expected grad to have shape"),
        (grad.double(), mask, TypeError, "Expected grad to have dtype"),
        (grad, mask[:2], ValueError, "Expected output_mask to have 3 entries"),
    ):
        yield Sample((wrong, x, values, *index, wanted), "", geometry), kind, sentence
