"""``bsr_linear``: a linear layer whose weight is stored as dense blocks in compressed rows."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sparsekern._checks import as_rows, check_dtype, check_shape, check_tensor
from sparsekern._extension import native
from sparsekern.kernels.launch import Launcher
from sparsekern.ops._activation import (
    activate,
    activation_gradient,
    check_activation,
    is_gelu,
    wants_gradient,
)
from sparsekern.ops._define import Cost, Op, Variant, define_op
from sparsekern.ops.bsr._linears import (
    activated_errors,
    activated_samples,
    backward_errors,
    backward_samples,
    errors,
    samples,
)
from sparsekern.ops.bsr._variants import choose_on_cuda, triton_limits
from sparsekern.ops.bsr.dense import gather, gather_op, to_dense, to_dense_op
from sparsekern.ops.bsr.index import BsrIndex
from sparsekern.ops.csr._checks import check_operands

_INDEX = "Tensor crow, Tensor col, Tensor crow_t, Tensor col_t, Tensor perm"


def _reference(
    x: Tensor, values: Tensor, bias: Tensor | None, probe: Tensor | None, *index: Tensor
) -> Tensor:
    """Plain torch, accumulated in the dtype of ``values``."""
    crow, col, *_ = index
    weight = to_dense_op.reference(values, crow, col, index[2].shape[0] - 1)
    if probe is not None:
        weight = weight + probe
    return F.linear(x.to(values.dtype), weight, bias).to(x.dtype)


def _dense(
    x: Tensor, values: Tensor, bias: Tensor | None, probe: Tensor | None, *index: Tensor
) -> Tensor:
    """Scatter into scratch, then torch's own dense kernels in the dtype of ``x``."""
    crow, col, *_ = index
    weight = to_dense(values, crow, col, index[2].shape[0] - 1)
    if probe is not None:
        weight = weight + probe
    return F.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))


def _check(
    x: Tensor, values: Tensor, bias: Tensor | None, probe: Tensor | None, *index: Tensor
) -> None:
    if not isinstance(x, Tensor) or not isinstance(values, Tensor):
        check_tensor(x, "x")
        check_tensor(values, "values")
    check_tensor(values, "values", ndim=3)
    rows, cols = _sizes(values, index)
    if x.ndim < 1 or x.shape[-1] != cols:
        raise ValueError(
            f"Expected x to have {cols} features in its last dimension. Got shape {tuple(x.shape)}."
        )
    named = dict(zip(BsrIndex._fields, index, strict=True))
    block = tuple(values.shape[1:])
    check_operands(x, values, bias, probe, (rows, cols), named, block)
    if 0 in block:
        raise ValueError(f"Expected values to have blocks with elements. Got {block}.")


def _sizes(values: Tensor, index: tuple[Tensor, ...]) -> tuple[int, int]:
    """``O`` and ``I``."""
    return (index[0].shape[0] - 1) * values.shape[1], (index[2].shape[0] - 1) * values.shape[2]


def _fake(
    x: Tensor, values: Tensor, bias: Tensor | None, probe: Tensor | None, *index: Tensor
) -> Tensor:
    return x.new_empty(*x.shape[:-1], _sizes(values, index)[0])


def _setup(ctx: Any, inputs: Any, output: Any) -> None:
    x, values, _, probe, *index = inputs
    ctx.save_for_backward(x, values, *index)
    ctx.has_probe = probe is not None


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, values, *index = ctx.saved_tensors
    needs_x, needs_values, needs_bias, needs_probe, *_ = ctx.needs_input_grad
    dense_grad = None
    if ctx.has_probe and needs_probe:
        # NOTE: with the dense gradient at hand the kept part is gathered, not computed again.
        dense_grad = as_rows(grad).to(values.dtype).t() @ as_rows(x).to(values.dtype)
    mask = [needs_x, needs_values and dense_grad is None, needs_bias]
    dx, dvalues, dbias = linear_backward_op.without_gradient(
        grad, x, values, *index, mask, variant=ctx.options["variant"]
    )
    if needs_values and dense_grad is not None:
        dvalues = gather(dense_grad, index[0], index[1], tuple(values.shape[1:]))
    gradients = (
        dx if needs_x else None,
        dvalues if needs_values else None,
        dbias if needs_bias else None,
        dense_grad,
    )
    return *gradients, *(None for _ in index)


def _backward_reference(
    grad: Tensor, x: Tensor, values: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    crow, col, crow_t, *_, output_mask = rest
    weight = to_dense_op.reference(values, crow, col, crow_t.shape[0] - 1)
    flat_grad = as_rows(grad).to(values.dtype)
    flat_x = as_rows(x).to(values.dtype)
    empty = values.new_empty(0)
    dx = (flat_grad @ weight).to(x.dtype).view(x.shape) if output_mask[0] else x.new_empty(0)
    dvalues = empty
    if output_mask[1]:
        dvalues = gather_op.reference(flat_grad.t() @ flat_x, crow, col, *values.shape[1:])
    dbias = flat_grad.sum(0) if output_mask[2] else values.new_empty(0)
    return dx, dvalues, dbias


def _check_backward(grad: Tensor, x: Tensor, values: Tensor, *rest: Any) -> None:
    *index, output_mask = rest
    _check(x, values, None, None, *index)
    check_shape(grad, "grad", (*x.shape[:-1], _sizes(values, tuple(index))[0]))
    check_dtype(grad, "grad", (x.dtype,))
    if len(output_mask) != 3:
        raise ValueError(f"Expected output_mask to have 3 entries. Got {len(output_mask)}.")


def _fake_backward(
    grad: Tensor, x: Tensor, values: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    *index, output_mask = rest
    rows, _ = _sizes(values, tuple(index))
    return (
        torch.empty_like(x, memory_format=torch.contiguous_format)
        if output_mask[0]
        else x.new_empty(0),
        torch.empty_like(values) if output_mask[1] else values.new_empty(0),
        values.new_empty(rows if output_mask[2] else 0),
    )


def _supports_panel(*args: Any) -> str | None:
    if not native.loaded:
        return f"the native library is not loaded: {native.reason}"
    if args[1].device.type != "cpu":
        return f"it runs on the CPU. Got {args[1].device}."
    return None


def _triton_limits(x: Tensor, values: Tensor, *rest: Any) -> str | None:
    return triton_limits(values)


def _triton_limits_backward(grad: Tensor, x: Tensor, values: Tensor, *rest: Any) -> str | None:
    return triton_limits(values)


_TRITON = Launcher("bsr.linear", "linear", _triton_limits)
_TRITON_BACKWARD = Launcher("bsr.linear", "linear_backward", _triton_limits_backward)


def _select(x: Tensor, *rest: Any) -> str:
    if x.device.type == "cuda":
        return choose_on_cuda(_TRITON, x, *rest)
    return "panel" if native.loaded and x.device.type == "cpu" else "reference"


def _select_backward(grad: Tensor, x: Tensor, *rest: Any) -> str:
    if x.device.type == "cuda":
        return "triton" if _TRITON_BACKWARD.supports(grad, x, *rest) is None else "reference"
    return "panel" if native.loaded and x.device.type == "cpu" else "reference"


def _activated_reference(x: Tensor, values: Tensor, bias: Tensor | None, *rest: Any) -> Tensor:
    """Plain torch, accumulated in the dtype of ``values``."""
    *index, activation = rest
    y = _reference(x.to(values.dtype), values, bias, None, *index)
    return activate(y, activation).to(x.dtype)


def _check_activated(x: Tensor, values: Tensor, bias: Tensor | None, *rest: Any) -> None:
    *index, activation = rest
    _check(x, values, bias, None, *index)
    check_activation(activation)


def _setup_activated(ctx: Any, inputs: Any, output: Any) -> None:
    x, values, bias, *index, ctx.activation = inputs
    gelu = is_gelu(ctx.activation)
    ctx.save_for_backward(x, values, bias if gelu else None, None if gelu else output, *index)


def _backward_activated(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, values, bias, y, *index = ctx.saved_tensors
    dtype = x.dtype
    if is_gelu(ctx.activation):
        # NOTE: :func:`linear` keeps what GELU is taken of, where gradients are wanted; it is
        # multiplied again only for those who call the op itself.
        x = x.to(values.dtype)  # 16 bits would be rounded twice
        z = _again(linear_op, x, values, bias, None, *index)
        grad = activation_gradient(grad.to(values.dtype), ctx.activation, z)
    elif ctx.activation == "relu":
        grad = grad.masked_fill(y <= 0, 0)
    needs = list(ctx.needs_input_grad[:3])
    gradients = _again(linear_backward_op, grad, x, values, *index, needs)
    wanted = [each if need else None for each, need in zip(gradients, needs, strict=True)]
    dx = wanted[0]
    return None if dx is None else dx.to(dtype), *wanted[1:], *(None for _ in index), None


def _again(op: Op, *args: Any) -> Any:
    """The op as its rule runs it, without its autograd entry."""
    assert op.select is not None
    return op.without_gradient(*args, variant=op.select(*args))


def _bytes(x: Tensor, values: Tensor, index: tuple[Tensor, ...]) -> tuple[int, int, int]:
    y_numel = math.prod(x.shape[:-1]) * _sizes(values, index)[0]
    return x.nbytes, y_numel * x.element_size(), 4 * index[1].numel()


def _cost(
    x: Tensor, values: Tensor, bias: Tensor | None, probe: Tensor | None, *index: Tensor
) -> Cost:
    x_bytes, y_bytes, col_bytes = _bytes(x, values, index)
    flops = 2 * values.numel() * math.prod(x.shape[:-1])
    return Cost(flops, x_bytes + col_bytes + values.numel() * values.element_size(), y_bytes)


def _backward_cost(grad: Tensor, x: Tensor, values: Tensor, *rest: Any) -> Cost:
    *index, mask = rest
    x_bytes, y_bytes, col_bytes = _bytes(x, values, tuple(index))
    value_bytes = values.numel() * values.element_size()
    products = int(mask[0]) + int(mask[1])
    flops = 2 * products * values.numel() * math.prod(x.shape[:-1])
    written = x_bytes * mask[0] + value_bytes * mask[1]
    return Cost(flops, x_bytes + y_bytes + products * col_bytes + value_bytes, written)


linear_backward_op = define_op(
    f"bsr_linear_backward(Tensor grad, Tensor x, Tensor values, {_INDEX}, bool[3] output_mask, *, "
    "str variant='auto') -> (Tensor, Tensor, Tensor)",
    reference=_backward_reference,
    check=_check_backward,
    fake=_fake_backward,
    setup=None,
    backward="second derivatives are not computed; use sparsekern.densify(model) for them.",
    variants=(Variant("panel", _supports_panel),),
    select=_select_backward,
    samples=backward_samples,
    errors=backward_errors,
    cost=_backward_cost,
    triton=_TRITON_BACKWARD,
)

linear_op = define_op(
    f"bsr_linear(Tensor x, Tensor values, Tensor? bias, Tensor? probe, {_INDEX}, *, "
    "str variant='auto') -> Tensor",
    reference=_reference,
    check=_check,
    fake=_fake,
    setup=_setup,
    backward=_backward,
    variants=(
        Variant("panel", _supports_panel),
        Variant("dense", lambda *_: None, _dense),
    ),
    select=_select,
    samples=samples,
    errors=errors,
    cost=_cost,
    triton=_TRITON,
)


activated_linear_op = define_op(
    f"bsr_activated_linear(Tensor x, Tensor values, Tensor? bias, {_INDEX}, str activation) "
    "-> Tensor",
    reference=_activated_reference,
    check=_check_activated,
    fake=lambda x, values, bias, *rest: _fake(x, values, bias, None, *rest[:-1]),
    setup=_setup_activated,
    backward=_backward_activated,
    samples=activated_samples,
    errors=activated_errors,
    cost=lambda x, values, bias, *rest: _cost(x, values, bias, None, *rest[:-1]),
    triton=Launcher("bsr.linear", "activated_linear", _triton_limits),
)


def linear(
    x: Tensor,
    values: Tensor,
    index: BsrIndex,
    bias: Tensor | None = None,
    *,
    probe: Tensor | None = None,
    activation: str = "none",
    variant: str = "auto",
) -> Tensor:
    """``y = activation(x W^T + bias)`` with ``W[R h + r, col[j] w + c] = values[j, r, c]`` for the
    blocks ``j`` of row ``R`` of blocks.

    Args:
        x: ``[..., I]`` float32, float64, bfloat16 or float16, any strides.
        values: ``[n, h, w]`` float32 (float64 with a float64 ``x``), blocks in row-major order;
            16-bit values are widened first. Any ``h`` and ``w``; 8, 16, 32 and 64 are fastest.
        index: of the ``[O / h, I / w]`` matrix of blocks, from :func:`build_index`.
        bias: ``[O]``, or None.
        probe: ``[O, I]`` zeros (stride 0) whose gradient is the dense gradient of ``W``, or None.
        activation: "none", "relu", "gelu" or "gelu_tanh" (as in :func:`torch.nn.functional.gelu`):
            "triton" applies it before outputs are stored, GELU only where no gradient is wanted,
            since its gradient needs what it is taken of; else torch does, on the stored outputs.
        variant: "auto", or one of: "panel" (native CPU), "triton" (CUDA; sides that are multiples
            of 16; values that are rounded to the dtype of ``x`` first, as under autocast, and added
            up in float32), "dense" (scatter into scratch and torch's dense kernels), "reference".

    Returns:
        ``[..., O]`` of the dtype of ``x``, accumulated in the dtype of ``values``.

    Raises:
        TypeError, ValueError: shapes, dtypes or devices that do not fit; an unknown activation or
            variant.
        NotImplementedError: a variant that cannot run here, with the reason; second derivatives.
        RuntimeError: an index that points out of the matrix (native code).

    Gradients: of ``x``, ``values`` (float32 for 16-bit ``x``), ``bias`` and ``probe``.
    Deterministic: "panel" gives the same bits for any number of threads, "triton" cuts dvalues
    along the batch by shapes alone and has no atomics.
    Cost: ``2 B n h w`` flops forward, twice that backward; reads ``x``, ``values`` and ``col``.
    Reference: Gray, Radford & Kingma, GPU kernels for block-sparse weights, 2017 (the storage).
    """
    if values.dtype in (torch.bfloat16, torch.float16):
        values = values.float()
    if bias is not None and bias.dtype != values.dtype:
        bias = bias.to(values.dtype)
    if activation == "none":
        return linear_op(x, values, bias, probe, *index, variant=variant)
    check_activation(activation)
    if _fuses(x, values, bias, probe, index, activation, variant):
        return activated_linear_op(x, values, bias, *index, activation)
    return activate(linear_op(x, values, bias, probe, *index, variant=variant), activation)


def _fuses(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    probe: Tensor | None,
    index: BsrIndex,
    activation: str,
    variant: str,
) -> bool:
    """Whether the kernel that runs applies the activation itself."""
    if probe is not None or (is_gelu(activation) and wants_gradient(x, values, bias, probe)):
        return False
    if variant not in ("auto", "triton") or not isinstance(x, Tensor) or values.ndim != 3:
        return False
    if _TRITON.supports(x, values) is not None:
        return False  # PERF: on the CPU before any check, which the op makes anyway
    _check(x, values, bias, probe, *index)
    return variant == "triton" or _select(x, values, bias, probe, *index) == "triton"


__all__ = ["activated_linear_op", "linear", "linear_backward_op", "linear_op"]
