"""Bit masks: one bit a weight, lowest bit of a byte first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from sparsekern._checks import check_device, check_dtype, check_shape, check_tensor
from sparsekern.kernels.launch import Launcher
from sparsekern.ops._define import Cost, Sample, define_op

_SHAPES = ((0,), (1,), (7,), (8,), (3, 3), (5, 16), (129, 31))


def _pack_reference(mask: Tensor) -> Tensor:
    flat = mask.flatten().to(torch.uint8)
    padded = torch.cat([flat, flat.new_zeros(-flat.numel() % 8)]).view(-1, 8)
    shifts = torch.arange(8, dtype=torch.uint8, device=mask.device)
    return (padded << shifts).sum(1, dtype=torch.uint8)


def _unpack_reference(bits: Tensor, shape: Sequence[int]) -> Tensor:
    numel = 1
    for size in shape:
        numel *= size
    shifts = torch.arange(8, dtype=torch.uint8, device=bits.device)
    flat = (bits.unsqueeze(1) >> shifts) & 1
    return flat.flatten().narrow(0, 0, numel).bool().view(*shape)


def _apply_reference(x: Tensor, bits: Tensor) -> None:
    x.masked_fill_(~_unpack_reference(bits, x.shape), 0)


def _count_reference(mask: Tensor) -> Tensor:
    flags = mask if mask.dtype == torch.bool else _unpack_reference(mask, (8 * mask.numel(),))
    return flags.sum(dtype=torch.int64)


def _check_count(mask: Tensor) -> None:
    check_tensor(mask, "mask")
    check_dtype(mask, "mask", (torch.bool, torch.uint8))


def _check_pack(mask: Tensor) -> None:
    check_tensor(mask, "mask")
    check_dtype(mask, "mask", (torch.bool,))


def _check_bits(bits: Tensor, numel: int) -> None:
    check_tensor(bits, "bits", ndim=1)
    check_dtype(bits, "bits", (torch.uint8,))
    check_shape(bits, "bits", ((numel + 7) // 8,))


def _check_unpack(bits: Tensor, shape: Sequence[int]) -> None:
    numel = 1
    for size in shape:
        numel *= size
    _check_bits(bits, numel)


def _check_apply(x: Tensor, bits: Tensor) -> None:
    check_tensor(x, "x")
    _check_bits(bits, x.numel())
    check_device(bits, "bits", x.device, "x")
    check_dtype(x, "x", (torch.float32, torch.float64, torch.bfloat16, torch.float16))
    if not x.is_contiguous():
        raise ValueError(f"Expected x to be contiguous. Got strides {x.stride()}.")


def _masks(device: torch.device) -> Iterator[tuple[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    for shape in _SHAPES:
        mask = torch.rand(shape, generator=generator) < 0.4
        yield "x".join(map(str, shape)), mask.to(device)


def _pack_samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    for name, mask in _masks(device):
        yield Sample((mask,), name, small=True)
        if mask.ndim == 2:
            yield Sample((mask.t(),), name + "_strided")


def _count_samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    for sample in _pack_samples(device, dtype):
        yield sample
        yield Sample((_pack_reference(*sample.args),), f"{sample.id}_bits", small=True)
    generator = torch.Generator().manual_seed(1)
    yield Sample((torch.rand(500, 401, generator=generator).to(device) < 0.5,), "typical")


def _unpack_samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    for name, mask in _masks(device):
        yield Sample((_pack_reference(mask), list(mask.shape)), name, small=True)


def _apply_samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    for name, mask in _masks(device):
        x = torch.linspace(-2, 2, mask.numel(), device=device).view(mask.shape).to(dtype)
        yield Sample((x, _pack_reference(mask)), name, small=True)
    x = torch.full((9,), float("nan"), device=device, dtype=dtype)
    yield Sample((x, torch.tensor([0b101, 0], dtype=torch.uint8, device=device)), "nan", small=True)


def _pack_errors() -> Iterator[tuple[tuple[Any, ...], type[Exception], str]]:
    yield (torch.zeros(3),), TypeError, "Expected mask to have dtype torch.bool"


def _count_errors() -> Iterator[tuple[tuple[Any, ...], type[Exception], str]]:
    yield (torch.zeros(3),), TypeError, "Expected mask to have dtype torch.bool or torch.uint8"


def _unpack_errors() -> Iterator[tuple[tuple[Any, ...], type[Exception], str]]:
    bits = torch.zeros(1, dtype=torch.uint8)
    yield (bits.float(), [3]), TypeError, "Expected bits to have dtype torch.uint8"
    yield (bits, [9]), ValueError, "Expected bits to have shape"


def _apply_errors() -> Iterator[tuple[tuple[Any, ...], type[Exception], str]]:
    bits = torch.zeros(1, dtype=torch.uint8)
    yield (torch.zeros(9), bits), ValueError, "Expected bits to have shape"
    yield (torch.zeros(4, 2).t(), bits), ValueError, "Expected x to be contiguous"
    yield (torch.zeros(8).long(), bits), TypeError, "Expected x to have dtype"


pack_bits_op = define_op(
    "mask_pack_bits(Tensor mask) -> Tensor",
    reference=_pack_reference,
    check=_check_pack,
    fake=lambda mask: mask.new_empty((mask.numel() + 7) // 8, dtype=torch.uint8),
    setup=None,
    backward="a mask has no gradient.",
    samples=_pack_samples,
    errors=_pack_errors,
    cost=lambda mask: Cost(0, mask.numel(), mask.numel() // 8),
    triton=Launcher("mask.bits", "pack_bits"),
)

unpack_bits_op = define_op(
    "mask_unpack_bits(Tensor bits, SymInt[] shape) -> Tensor",
    reference=_unpack_reference,
    check=_check_unpack,
    fake=lambda bits, shape: bits.new_empty(shape, dtype=torch.bool),
    setup=None,
    backward="a mask has no gradient.",
    samples=_unpack_samples,
    errors=_unpack_errors,
    cost=lambda bits, shape: Cost(0, bits.numel(), 8 * bits.numel()),
    triton=Launcher("mask.bits", "unpack_bits"),
)

apply_op = define_op(
    "mask_apply_(Tensor(a!) x, Tensor bits) -> ()",
    reference=_apply_reference,
    check=_check_apply,
    fake=lambda x, bits: None,
    setup=None,
    backward="it works in place, on gradients and weights outside of the graph.",
    samples=_apply_samples,
    errors=_apply_errors,
    cost=lambda x, bits: Cost(
        0, x.numel() * x.element_size() + bits.numel(), x.numel() * x.element_size()
    ),
    triton=Launcher("mask.bits", "apply_"),
)


count_op = define_op(
    "mask_count(Tensor mask) -> Tensor",
    reference=_count_reference,
    check=_check_count,
    fake=lambda mask: mask.new_empty((), dtype=torch.int64),
    setup=None,
    backward="a count has no gradient.",
    samples=_count_samples,
    errors=_count_errors,
    cost=lambda mask: Cost(0, mask.numel(), 8),
    triton=Launcher("mask.bits", "count"),
)


def count(mask: Tensor) -> int:
    """How many weights a mask keeps.

    Args:
        mask: bool of any shape and strides, or uint8 as :func:`pack_bits` packs it.

    Returns:
        The number of True elements, or of set bits.

    Raises:
        TypeError: another dtype.

    Gradients: none. Deterministic. Cost: one read of the mask.
    """
    return int(count_op(mask))


def pack_bits(mask: Tensor) -> Tensor:
    """Bit ``i % 8`` of byte ``i // 8`` is element ``i`` of ``mask`` in row-major order.

    Args:
        mask: bool, any shape and strides.

    Returns:
        uint8 ``[ceil(numel / 8)]``; unused bits are zero.

    Raises:
        TypeError: another dtype.

    Gradients: none. Deterministic. Cost: one read of the mask.
    """
    return pack_bits_op(mask)


def unpack_bits(bits: Tensor, shape: Sequence[int]) -> Tensor:
    """The bool mask of the given shape that :func:`pack_bits` packed.

    Args:
        bits: uint8 ``[ceil(numel / 8)]``.
        shape: of the mask.

    Returns:
        bool of that shape.

    Raises:
        TypeError, ValueError: another dtype, or a length that does not fit the shape.

    Gradients: none. Deterministic. Cost: one write of the mask.
    """
    return unpack_bits_op(bits, list(shape))


def apply_(x: Tensor, bits: Tensor) -> None:
    """``x[i] = 0`` in place wherever bit ``i`` is 0 (a NaN there becomes zero too).

    Args:
        x: contiguous, any shape; float32, float64, bfloat16 or float16.
        bits: uint8 ``[ceil(numel / 8)]`` on the device of ``x``.

    Raises:
        TypeError, ValueError: dtype, length or device that does not fit; ``x`` with gaps.

    Gradients: none. Deterministic. Cost: one read and one write of ``x``.
    """
    apply_op(x, bits)
