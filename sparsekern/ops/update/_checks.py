"""Checks shared by the update ops: lists of tensors, their dtypes, shapes and devices."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sparsekern._checks import check_device, check_dtype, check_shape, check_tensor
from sparsekern.ops.mask.bits import unpack_bits_op

WEIGHT_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
SCALAR_DTYPES = (torch.float32, torch.float64)


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of optimiser state: that of the weights, float32 for 16-bit ones (a second moment
    in bfloat16 no longer changes at beta2 = 0.999)."""
    return dtype if dtype in SCALAR_DTYPES else torch.float32


def check_list(value: object, name: str, length: int | None = None) -> None:
    """Raises unless ``value`` is a list of (that many) contiguous tensors."""
    if not isinstance(value, (list, tuple)):
        raise TypeError(f"Expected {name} to be a list of tensors. Got {type(value).__name__}.")
    if length is not None and len(value) != length:
        raise ValueError(f"Expected {name} to have {length} entries. Got {len(value)}.")
    # One look at each tensor: this runs in every step, over the tensors of a whole model.
    if all(isinstance(each, Tensor) and each.is_contiguous() for each in value):
        return
    for i, each in enumerate(value):
        check_tensor(each, f"{name}[{i}]")
        if not each.is_contiguous():
            raise ValueError(
                f"Expected {name}[{i}] to be contiguous. Got strides {tuple(each.stride())}."
            )


def check_like(
    values: Sequence[Tensor], name: str, params: Sequence[Tensor], *, is_state: bool = False
) -> None:
    """A list of tensors that fit ``params``; states have the dtype of :func:`state_dtype`."""
    check_list(values, name, len(params))
    for i, (value, param) in enumerate(zip(values, params, strict=True)):
        dtype = state_dtype(param.dtype) if is_state else param.dtype
        same = value.dtype == dtype and value.shape == param.shape
        if same and value.device == param.device:
            continue
        check_dtype(value, f"{name}[{i}]", (dtype,))
        check_shape(value, f"{name}[{i}]", tuple(param.shape))
        check_device(value, f"{name}[{i}]", param.device, f"params[{i}]")


def check_masked(
    tensors: Sequence[Tensor], name: str, bits: Sequence[Tensor], factor: Tensor | None = None
) -> None:
    """Weights or gradients with their masks; all are on one device."""
    check_list(tensors, name)
    check_list(bits, "bits", len(tensors))
    device = tensors[0].device if tensors else None
    for i, (each, mask) in enumerate(zip(tensors, bits, strict=True)):
        fits = mask.shape == (0,) or mask.shape == ((each.numel() + 7) // 8,)
        fits = fits and mask.dtype == torch.uint8 and each.dtype in WEIGHT_DTYPES
        if fits and mask.device == each.device == device:
            continue
        check_dtype(each, f"{name}[{i}]", WEIGHT_DTYPES)
        check_device(each, f"{name}[{i}]", tensors[0].device, f"{name}[0]")
        check_dtype(mask, f"bits[{i}]", (torch.uint8,))
        check_device(mask, f"bits[{i}]", each.device, f"{name}[{i}]")
        check_shape(mask, f"bits[{i}]", ((each.numel() + 7) // 8,))
    if factor is not None:
        check_scalar(factor, "grad_factor")


def check_scalar(value: Tensor, name: str) -> None:
    """One float32 or float64 number as a tensor."""
    if isinstance(value, Tensor) and value.dtype in SCALAR_DTYPES and value.numel() == 1:
        return
    check_tensor(value, name)
    check_dtype(value, name, SCALAR_DTYPES)
    raise ValueError(f"Expected {name} to have one element. Got shape {tuple(value.shape)}.")


def kept(bits: Tensor, like: Tensor) -> Tensor:
    """The bool mask of ``like``: of its bits, or all True where there are none."""
    if bits.numel() == 0:
        return torch.ones(like.shape, dtype=torch.bool, device=like.device)
    return unpack_bits_op.reference(bits, like.shape)


def scaled(grad: Tensor, dtype: torch.dtype, factor: Tensor | None, maximize: bool) -> Tensor:
    """The gradient in the dtype of the arithmetic, times the factor, negative to maximise."""
    wide = grad.to(dtype)
    if factor is not None:
        wide = wide * factor.reshape(()).to(wide)
    return -wide if maximize else wide
