"""``csr_linear``: a linear layer whose weight is stored in compressed rows."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sparsekern._checks import as_rows, check_device, check_dtype, check_shape, check_tensor
from sparsekern._extension import native
from sparsekern.kernels.launch import Launcher
from sparsekern.ops._activation import (
    activate,
    activation_gradient,
    check_activation,
    is_gelu,
    wants_gradient,
)
from sparsekern.ops._define import Cost, Variant, define_op
from sparsekern.ops.csr import _cuda
from sparsekern.ops.csr._checks import check_operands, fits_on_cpu
from sparsekern.ops.csr._linears import backward_errors, backward_samples, errors, samples
from sparsekern.ops.csr.dense import gather, gather_op, to_dense, to_dense_op
from sparsekern.ops.csr.index import CsrIndex, build_index

_INDEX = (
    "Tensor crow, Tensor col, Tensor starts, "
    "Tensor crow_t, Tensor col_t, Tensor perm, Tensor starts_t"
)


def _reference(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    probe: Tensor | None,
    *index: Tensor,
    activation: str = "none",
) -> Tensor:
    """Plain torch, accumulated in the dtype of ``values``."""
    crow, col, *_ = index
    weight = to_dense_op.reference(values, crow, col, x.shape[-1])
    if probe is not None:
        weight = weight + probe
    return activate(F.linear(x.to(values.dtype), weight, bias), activation).to(x.dtype)


def _dense(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    probe: Tensor | None,
    *index: Tensor,
    activation: str = "none",
) -> Tensor:
    """Scatter into scratch, then torch's own dense kernels in the dtype of ``x``."""
    crow, col, *_ = index
    weight = to_dense(values.to(x.dtype), crow, col, x.shape[-1])
    if probe is not None:
        weight = weight + probe.to(x.dtype)
    z = F.linear(x, weight, None if bias is None else bias.to(x.dtype))
    return activate(z, activation)


def _check(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    probe: Tensor | None,
    *index: Tensor,
    activation: str = "none",
) -> None:
    if not isinstance(x, Tensor) or not isinstance(values, Tensor):
        check_tensor(x, "x")
        check_tensor(values, "values")
    crow, _, _, crow_t, *_ = index
    rows, cols = crow.size(0) - 1, crow_t.size(0) - 1
    if x.dim() < 1 or x.size(-1) != cols:
        raise ValueError(
            f"Expected x to have {cols} features in its last dimension. Got shape {tuple(x.shape)}."
        )
    check_activation(activation)
    if probe is not None or not fits_on_cpu(x, values, bias, index, rows):
        named = dict(zip(CsrIndex._fields, index, strict=True))
        check_operands(x, values, bias, probe, (rows, cols), named)


def _fake(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    probe: Tensor | None,
    *index: Tensor,
    activation: str = "none",
) -> Tensor:
    return x.new_empty(*x.shape[:-1], index[0].shape[0] - 1)


def _setup(ctx: Any, inputs: Any, output: Any) -> None:
    x, values, bias, probe, *index = inputs
    ctx.activation = ctx.options.get("activation", "none")
    y = output if ctx.activation == "relu" else None
    ctx.save_for_backward(x, values, y, bias if is_gelu(ctx.activation) else None, *index)
    ctx.has_probe = probe is not None


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, values, y, bias, *index = ctx.saved_tensors
    dtype = x.dtype
    variant = ctx.options["variant"]
    if is_gelu(ctx.activation):
        # NOTE: :func:`linear` keeps what GELU is taken of, where gradients are wanted; it is
        # multiplied again only for those who call the op itself.
        x = x.to(values.dtype)  # 16 bits would be rounded twice
        z = linear_op.without_gradient(x, values, bias, None, *index, variant=variant)
        grad = activation_gradient(grad.to(values.dtype), ctx.activation, z)
    needs_x, needs_values, needs_bias, needs_probe, *_ = ctx.needs_input_grad
    dense_grad = None
    if ctx.has_probe and needs_probe:
        grad, y = _gated(grad, y), None
        # NOTE: with the dense gradient at hand the kept part is gathered, not computed again.
        dense_grad = as_rows(grad).to(values.dtype).t() @ as_rows(x).to(values.dtype)
    mask = [needs_x, needs_values and dense_grad is None, needs_bias]
    dx, dvalues, dbias = linear_backward_op.without_gradient(
        grad, x, values, y, *index, mask, variant=variant
    )
    if needs_values and dense_grad is not None:
        dvalues = gather(dense_grad, index[0], index[1])
    gradients = (
        dx.to(dtype) if needs_x else None,
        dvalues if needs_values else None,
        dbias if needs_bias else None,
        dense_grad,
    )
    return *gradients, *(None for _ in index)


def _gated(grad: Tensor, y: Tensor | None) -> Tensor:
    """The gradient of a ReLU's input from its output; as in torch, NaN lets it through."""
    return grad if y is None else grad.masked_fill(y <= 0, 0)


def _backward_reference(
    grad: Tensor, x: Tensor, values: Tensor, y: Tensor | None, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    crow, col, *_, output_mask = rest
    grad = _gated(grad, y)
    weight = to_dense_op.reference(values, crow, col, x.shape[-1])
    flat_grad = as_rows(grad).to(values.dtype)
    flat_x = as_rows(x).to(values.dtype)
    empty = values.new_empty(0)
    dx = (flat_grad @ weight).to(x.dtype).view(x.shape) if output_mask[0] else x.new_empty(0)
    dvalues = gather_op.reference(flat_grad.t() @ flat_x, crow, col) if output_mask[1] else empty
    dbias = flat_grad.sum(0) if output_mask[2] else values.new_empty(0)
    return dx, dvalues, dbias


def _check_backward(grad: Tensor, x: Tensor, values: Tensor, y: Tensor | None, *rest: Any) -> None:
    *index, output_mask = rest
    _check(x, values, None, None, *index)
    check_shape(grad, "grad", (*x.shape[:-1], index[0].shape[0] - 1))
    check_dtype(grad, "grad", (x.dtype,))
    if y is not None:
        check_shape(y, "y", tuple(grad.shape))
        check_dtype(y, "y", (x.dtype,))
        check_device(y, "y", x.device, "x")
    if len(output_mask) != 3:
        raise ValueError(f"Expected output_mask to have 3 entries. Got {len(output_mask)}.")


def _fake_backward(
    grad: Tensor, x: Tensor, values: Tensor, y: Tensor | None, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    *index, output_mask = rest
    return (
        torch.empty_like(x, memory_format=torch.contiguous_format)
        if output_mask[0]
        else x.new_empty(0),
        torch.empty_like(values) if output_mask[1] else values.new_empty(0),
        values.new_empty(index[0].shape[0] - 1) if output_mask[2] else values.new_empty(0),
    )


def _supports_panel(*args: Any, activation: str = "none") -> str | None:
    if not native.loaded:
        return f"the native library is not loaded: {native.reason}"
    values = args[1] if args[1].ndim == 1 else args[2]
    if values.device.type != "cpu":
        return f"it runs on the CPU. Got {values.device}."
    return None


def _select(x: Tensor, values: Tensor, *rest: Any, activation: str = "none") -> str:
    if x.device.type == "cuda":
        _, _, crow, _, _, crow_t, *_ = rest
        weights = (crow.shape[0] - 1) * (crow_t.shape[0] - 1)
        density = values.shape[0] / max(weights, 1)
        return _cuda.select(_TRITON, density, math.prod(x.shape[:-1]), x, values)
    return "panel" if native.loaded and x.device.type == "cpu" else "reference"


def _select_backward(grad: Tensor, x: Tensor, values: Tensor, y: Tensor | None, *rest: Any) -> str:
    chosen = _select(x, values, None, None, *rest)
    return "reference" if chosen == "dense" else chosen


_TRITON = Launcher("csr.linear", "linear", _cuda.limits)


def _bytes(x: Tensor, index: tuple[Tensor, ...]) -> tuple[int, int, int]:
    batch = math.prod(x.shape[:-1])
    rows = index[0].shape[0] - 1
    return x.numel() * x.element_size(), batch * rows * x.element_size(), 4 * index[1].numel()


def _cost(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    probe: Tensor | None,
    *index: Tensor,
    activation: str = "none",
) -> Cost:
    x_bytes, y_bytes, col_bytes = _bytes(x, index)
    flops = 2 * values.numel() * math.prod(x.shape[:-1])
    return Cost(flops, x_bytes + col_bytes + values.numel() * values.element_size(), y_bytes)


def _backward_cost(grad: Tensor, x: Tensor, values: Tensor, y: Tensor | None, *rest: Any) -> Cost:
    *index, mask = rest
    x_bytes, y_bytes, col_bytes = _bytes(x, tuple(index))
    grad_bytes = y_bytes if y is None else 2 * y_bytes
    value_bytes = values.numel() * values.element_size()
    products = int(mask[0]) + int(mask[1])
    flops = 2 * products * values.numel() * math.prod(x.shape[:-1])
    written = x_bytes * mask[0] + value_bytes * mask[1]
    return Cost(flops, x_bytes + grad_bytes + products * col_bytes + value_bytes, written)


linear_backward_op = define_op(
    f"csr_linear_backward(Tensor grad, Tensor x, Tensor values, Tensor? y, {_INDEX}, "
    "bool[3] output_mask, *, str variant='auto') -> (Tensor, Tensor, Tensor)",
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
    triton=Launcher("csr.linear", "linear_backward", _cuda.limits),
)

linear_op = define_op(
    f"csr_linear(Tensor x, Tensor values, Tensor? bias, Tensor? probe, {_INDEX}, *, "
    "str activation='none', str variant='auto') -> Tensor",
    reference=_reference,
    check=_check,
    fake=_fake,
    setup=_setup,
    backward=_backward,
    variants=(
        Variant("panel", _supports_panel),
        Variant("dense", lambda *_, **__: None, _dense),
    ),
    select=_select,
    samples=samples,
    errors=errors,
    cost=_cost,
    triton=_TRITON,
)


def linear(
    x: Tensor,
    values: Tensor,
    index: CsrIndex,
    bias: Tensor | None = None,
    *,
    probe: Tensor | None = None,
    activation: str = "none",
    variant: str = "auto",
) -> Tensor:
    """``y = activation(x W^T + bias)`` with ``W[r, col[j]] = values[j]`` for entries ``j`` of row
    ``r``.

    Args:
        x: ``[..., I]`` float32, float64, bfloat16 or float16, any strides.
        values: ``[nnz]`` float32 (float64 with a float64 ``x``) in row-major order of the mask;
            16-bit values are widened first.
        index: of the ``[O, I]`` matrix, from :func:`build_index`.
        bias: ``[O]``, or None.
        probe: ``[O, I]`` zeros (stride 0) whose gradient is the dense gradient of ``W``, or None.
        activation: "none", "relu", "gelu" or "gelu_tanh" (as in :func:`torch.nn.functional.gelu`),
            applied before outputs are stored; GELU only where no gradient is wanted, since its
            gradient needs what it is taken of, else by torch on the stored outputs.
        variant: "auto", or one of: "panel" (native CPU), "triton" (CUDA, unconfirmed), "dense"
            (scatter into scratch and torch's dense kernels), "reference". On CUDA, "auto" is
            "triton" up to density 0.01, for at most 64 rows of ``x`` up to 0.05, else "dense".

    Returns:
        ``[..., O]`` of the dtype of ``x``, accumulated in the dtype of ``values``.

    Raises:
        TypeError, ValueError: shapes, dtypes or devices that do not fit; an unknown activation or
            variant.
        NotImplementedError: a variant that cannot run here, with the reason; second derivatives.

    Gradients: of ``x``, ``values`` (float32 for 16-bit ``x``), ``bias`` and ``probe``.
    NaN and infinity travel along kept weights only; dense has NaN * 0 = NaN for the others too.
    Deterministic: "panel" gives the same bits for any number of threads, "triton" in every run.
    Cost: ``2 B nnz`` flops forward, ``4 B nnz`` backward; reads ``x``, ``values`` and ``col``.
    Reference: register-blocked sparse x dense as in docs/cpu_kernels.md.
    """
    if values.dtype in (torch.bfloat16, torch.float16):
        values = values.float()
    if bias is not None and bias.dtype != values.dtype:
        bias = bias.to(values.dtype)
    if is_gelu(activation) and wants_gradient(x, values, bias, probe):
        return activate(linear_op(x, values, bias, probe, *index, variant=variant), activation)
    return linear_op(x, values, bias, probe, *index, activation=activation, variant=variant)


__all__ = ["CsrIndex", "build_index", "linear", "linear_backward_op", "linear_op"]
