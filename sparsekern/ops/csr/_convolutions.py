"""Convolutions the csr ops are tested and timed on, the ugly ones included."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sparsekern.ops._activation import ACTIVATIONS
from sparsekern.ops._define import Sample
from sparsekern.ops._geometry import output_size
from sparsekern.ops.csr._checks import VALUE_DTYPES
from sparsekern.ops.csr.index import index_from_mask

Pair = tuple[int, int]
INDEX_NAMES = ("crow", "col", "crow_t", "col_t", "perm")  # of a CsrIndex, as convolutions take it


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
    C("chunks_side_by_side", (139, 5, 8, 8), 6, (3, 3), padding=(1, 1)),
    C("chunks_in_place", (17, 4, 16, 32), 5, (3, 3), padding=(1, 1)),
    C("chunks_ragged", (20, 3, 12, 41), 4, (3, 3), padding=(1, 0)),
    C("chunks_strided", (40, 3, 16, 34), 4, (3, 3), (2, 2), (1, 1)),
    C("chunks_pointwise", (66, 6, 8, 16), 5, (1, 1)),
    C("kernel_above_image", (2, 4, 2, 3), 5, (5, 5), padding=(2, 2)),
    C("padding_above_kernel", (1, 4, 5, 4), 5, (2, 2), padding=(4, 3)),
    C("empty", (2, 5, 6, 6), 7, (3, 3), padding=(1, 1), density=0.0),
    C("dense", (1, 5, 6, 6), 7, (3, 3), padding=(1, 1), density=1.0, bias=False),
    C("one_row", (2, 20, 9, 9), 33, (3, 3), padding=(1, 1)),
    C("one_output", (2, 20, 9, 9), 1, (3, 3), padding=(1, 1)),
    C("no_batch", (0, 4, 5, 5), 3, (3, 3)),
)


# Of these, also with an activation: outputs written in place and through scratch, with ragged rows.
ACTIVATED = ("tiny", "typical", "strided_wide", "small_images", "seven", "depthwise", "no_batch")


def _output_shape(x: Tensor, crow: Tensor, **geometry: Any) -> tuple[int, ...]:
    sizes = (geometry[name] for name in ("kernel_size", "stride", "padding", "dilation"))
    return (x.shape[0], crow.shape[0] - 1, *output_size(x.shape[2:], *sizes))


def samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    """Arguments of ``csr_conv2d``."""
    value_dtype = dtype if dtype in VALUE_DTYPES else torch.float32
    generator = torch.Generator().manual_seed(0)
    for case in CONVOLUTIONS:
        index = _conv_index(case, device)
        x = torch.randn(case.input_shape, generator=generator).to(device, dtype)
        values = torch.randn(index[1].shape, generator=generator).to(device, value_dtype)
        bias = torch.randn(case.out_channels, generator=generator).to(device, value_dtype)
        args: tuple[Any, ...] = (x, values, bias if case.bias else None, None, *index)
        yield Sample(args, case.name, case.geometry, small=case.small)
        if case.name in ACTIVATED:
            for name in ACTIVATIONS[1:]:
                options = {**case.geometry, "activation": name}
                yield Sample(args, f"{case.name}_{name}", options, small=case.name == "tiny")
        if case.small:
            columns = case.channels // case.groups * math.prod(case.kernel_size)
            zero = torch.zeros((), device=device, dtype=value_dtype)
            probe = zero.expand(case.out_channels, columns)
            args = (x, values, args[2], probe, *index)
            yield Sample(args, f"{case.name}_probe", case.geometry, small=True, promise=True)
            for name in ACTIVATIONS[1:]:
                options = {**case.geometry, "activation": name}
                yield Sample(args, f"{case.name}_probe_{name}", options, promise=True)
        if case.name == "typical":
            turned = x.transpose(2, 3).contiguous().transpose(2, 3)
            yield Sample((turned, *args[1:]), "strided", case.geometry)
            last = x.to(memory_format=torch.channels_last)
            yield Sample((last, *args[1:]), "channels_last", case.geometry)
            yield Sample((x[::2], *args[1:]), "every_second_image", case.geometry)


def _conv_index(case: Convolution, device: torch.device) -> tuple[Tensor, ...]:
    index = index_from_mask(case.mask().to(device))
    return tuple(getattr(index, name) for name in INDEX_NAMES)


def backward_samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    """Arguments of ``csr_conv2d_backward``."""
    for sample in samples(device, dtype):
        if "activation" in sample.kwargs:
            continue  # the same tensors again
        x, values, bias, _, *index = sample.args
        shape = _output_shape(x, index[0], **sample.kwargs)
        grad = torch.linspace(-1, 1.5, math.prod(shape), device=device).mul(7).sin()
        grad = grad.view(shape).to(dtype)
        mask = [True, True, bias is not None]
        args = (grad, x, values, *index, mask)
        yield Sample(args, sample.id, sample.kwargs, small=sample.small)
        if sample.id == "typical":
            for i in range(3):
                only = [i == j for j in range(3)]
                yield Sample((*args[:-1], only), f"only_{i}", sample.kwargs)
            expanded = grad[:1].expand(grad.shape)
            yield Sample((expanded, *args[1:]), "expanded_grad", sample.kwargs)


def errors() -> Iterator[tuple[Any, type[Exception], str]]:
    """Wrong arguments of ``csr_conv2d``."""
    case = Convolution("errors", (1, 4, 5, 5), 6, (3, 3), density=0.5)
    index = _conv_index(case, torch.device("cpu"))
    x, values = torch.zeros(case.input_shape), torch.zeros(index[1].shape)

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
    yield with_(x, values, torch.zeros(5), None), ValueError, "Expected bias to have shape"
    yield with_(x, values, None, torch.zeros(3)), ValueError, "Expected probe to have shape"
    for name in ("tanh", None):
        sentence = f"Expected activation to be none, relu, gelu or gelu_tanh. Got {name!r}."
        yield with_(activation=name), ValueError, sentence
    yield with_(groups=4), ValueError, "Expected groups to divide 6 output channels"
    yield with_(groups=2), ValueError, "Expected x to have 8 channels"
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
    """Wrong arguments of ``csr_conv2d_backward``."""
    case = Convolution("errors", (1, 4, 5, 5), 6, (3, 3), density=0.5)
    index = _conv_index(case, torch.device("cpu"))
    x, values, geometry = torch.zeros(case.input_shape), torch.zeros(index[1].shape), case.geometry
    grad, mask = torch.zeros(1, 6, 3, 3), [True, True, True]
    wrong = Sample((grad[..., :2], x, values, *index, mask), "", geometry)
    yield wrong, ValueError, "Expected grad to have shape"
    wrong = Sample((grad.double(), x, values, *index, mask), "", geometry)
    yield wrong, TypeError, "Expected grad to have dtype"
    wrong = Sample((grad, x, values, *index, [True]), "", geometry)
    yield wrong, ValueError, "Expected output_mask to have 3 entries"
