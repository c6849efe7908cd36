"""Checks shared by the update ops: lists of tensors, their dtypes, shapes and devices."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sparsekern._checks import check_device, check_dtype, check_shape, check_tensor
from sparsekern.ops.mask.bits import unpack_bits_op

WEIGHT_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
SCALAR_DTYPES = (torch.float32, torch.float64)
COPY_DTYPES = (torch.bfloat16, torch.float16)


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


def check_gradients(grads: Sequence[Tensor], params: Sequence[Tensor]) -> None:
    """As :func:`check_like`; those of float32 weights may have 16 bits."""
    check_list(grads, "grads", len(params))
    for i, (grad, param) in enumerate(zip(grads, params, strict=True)):
        fits = grad.dtype == param.dtype
        fits = fits or (param.dtype == torch.float32 and grad.dtype in COPY_DTYPES)
        if fits and grad.shape == param.shape and grad.device == param.device:
            continue
        wide = param.dtype == torch.float32
        check_dtype(grad, f"grads[{i}]", (param.dtype, *COPY_DTYPES) if wide else (param.dtype,))
        check_shape(grad, f"grads[{i}]", tuple(param.shape))
        check_device(grad, f"grads[{i}]", param.device, f"params[{i}]")


def check_copies(copies: Sequence[Tensor], params: Sequence[Tensor]) -> None:
    """No copy at all, or for each parameter one in 16 bits of its shape, or an empty tensor."""
    check_list(copies, "copies")
    if len(copies) == 0:
        return
    check_list(copies, "copies", len(params))
    for i, (copy, param) in enumerate(zip(copies, params, strict=True)):
        if copy.numel() == 0 and (copy.shape == (0,) or param.numel() == 0):
            continue
        check_dtype(copy, f"copies[{i}]", COPY_DTYPES)
        check_shape(copy, f"copies[{i}]", tuple(param.shape))
        check_device(copy, f"copies[{i}]", param.device, f"params[{i}]")
        if param.dtype != torch.float32:
            raise TypeError(
                f"Expected params[{i}] to have dtype torch.float32 where it has a copy. Got "
                f"{param.dtype}."
            )


def check_scalars(params: Sequence[Tensor], **scalars: Tensor | None) -> None:
    """``grad_factor``, ``found_inf`` and ``rate``: None, or one number where the weights are."""
    for name, value in scalars.items():
        if value is None:
            continue
        check_scalar(value, name)
        if name == "found_inf":
            check_dtype(value, name, (torch.float32,))
        if len(params) > 0:
            check_device(value, name, params[0].device, "params[0]")


def check_masked(tensors: Sequence[Tensor], name: str, bits: Sequence[Tensor]) -> None:
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


def write_reference(
    targets: Sequence[Tensor], values: Sequence[Tensor], found_inf: Tensor | None
) -> None:
    """Writes the values, rounded to the targets' dtypes, unless ``found_inf`` is not zero."""
    for target, value in zip(targets, values, strict=True):
        new = value.to(target.dtype)
        if found_inf is not None:
            new = torch.where(found_inf.reshape(()) != 0, target, new)
        target.copy_(new)


def copy_of(copies: Sequence[Tensor], i: int) -> list[Tensor]:
    """The copy of parameter ``i``, if it has one."""
    return [copies[i]] if len(copies) > 0 and copies[i].numel() > 0 else []


def why_no_kernel(tensors: Sequence[Tensor], steps: Sequence[Tensor] = ()) -> str | None:
    """What Triton's kernels cannot take, or None."""
    if any(each.dtype == torch.float64 for each in tensors):
        return "float64 runs in plain torch."
    if len({(step.dtype, step.device) for step in steps}) > 1:
        return "Triton's kernel takes steps of one dtype on one device."
    return None
