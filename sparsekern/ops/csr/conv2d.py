"""``csr_conv2d``: a convolution whose weight is stored in compressed rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sparsekern._checks import check_dtype, check_shape, check_tensor
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
from sparsekern.ops._geometry import check_geometry, empty_images, memory_format, output_size
from sparsekern.ops.csr import _convolutions as samples
from sparsekern.ops.csr import _cuda
from sparsekern.ops.csr._checks import check_operands
from sparsekern.ops.csr._convolutions import INDEX_NAMES
from sparsekern.ops.csr.dense import gather, gather_op, to_dense, to_dense_op
from sparsekern.ops.csr.index import CsrIndex

_INDEX = "Tensor crow, Tensor col, Tensor crow_t, Tensor col_t, Tensor perm"
_GEOMETRY = (
    "SymInt[2] kernel_size, SymInt[2] stride=1, SymInt[2] padding=0, SymInt[2] dilation=1, "
    "SymInt groups=1"
)
_Pair = Sequence[int]


def _weight(values: Tensor, index: Sequence[Tensor], kernel_size: _Pair, oracle: bool) -> Tensor:
    """The dense weight ``[O, I / groups, kh, kw]``."""
    crow, col, crow_t, *_ = index
    channels = crow_t.shape[0] - 1
    scatter = to_dense_op.reference if oracle else to_dense
    matrix: Tensor = scatter(values, crow, col, channels * kernel_size[0] * kernel_size[1])
    return matrix.view(-1, channels, *kernel_size)


def _reference(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    probe: Tensor | None,
    *index: Tensor,
    kernel_size: _Pair,
    stride: _Pair = (1, 1),
    padding: _Pair = (0, 0),
    dilation: _Pair = (1, 1),
    groups: int = 1,
    activation: str = "none",
) -> Tensor:
    """Plain torch, accumulated in the dtype of ``values``."""
    weight = _weight(values, index, kernel_size, oracle=True)
    if probe is not None:
        weight = weight + probe.view_as(weight)
    y = F.conv2d(x.to(values.dtype), weight, bias, stride, padding, dilation, groups)
    return activate(y, activation).to(x.dtype).contiguous(memory_format=memory_format(x))


def _dense(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    probe: Tensor | None,
    *index: Tensor,
    kernel_size: _Pair,
    stride: _Pair = (1, 1),
    padding: _Pair = (0, 0),
    dilation: _Pair = (1, 1),
    groups: int = 1,
    activation: str = "none",
) -> Tensor:
    """Scatter into scratch, then torch's own dense kernels in the dtype of ``x``."""
    weight = _weight(values.to(x.dtype), index, kernel_size, oracle=False)
    if probe is not None:
        weight = weight + probe.view_as(weight).to(x.dtype)
    offset = None if bias is None else bias.to(x.dtype)
    y = F.conv2d(x, weight, offset, stride, padding, dilation, groups)
    return activate(y, activation).contiguous(memory_format=memory_format(x))


def _check(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    probe: Tensor | None,
    *index: Tensor,
    kernel_size: _Pair,
    stride: _Pair = (1, 1),
    padding: _Pair = (0, 0),
    dilation: _Pair = (1, 1),
    groups: int = 1,
    activation: str = "none",
) -> None:
    check_activation(activation)
    check_tensor(x, "x", ndim=4)
    check_tensor(values, "values", ndim=1)
    crow, _, crow_t, *_ = index
    rows, channels = crow.shape[0] - 1, crow_t.shape[0] - 1
    check_geometry(kernel_size, stride, padding, dilation)
    if groups < 1 or rows % groups != 0:
        raise ValueError(f"Expected groups to divide {rows} output channels. Got {groups}.")
    if x.shape[1] != channels * groups or channels < 1:
        raise ValueError(
            f"Expected x to have {channels * groups} channels. Got shape {tuple(x.shape)}."
        )
    if min(output_size(x.shape[2:], kernel_size, stride, padding, dilation)) < 1:
        raise ValueError(
            f"Expected x to be as large as the kernel, {tuple(kernel_size)} with dilation "
            f"{tuple(dilation)}, once padded by {tuple(padding)}. Got shape {tuple(x.shape)}."
        )
    columns = channels * kernel_size[0] * kernel_size[1]
    named = dict(zip(INDEX_NAMES, index, strict=True))
    check_operands(x, values, bias, probe, (rows, columns), named)


def _size_of(
    x: Tensor,
    *,
    kernel_size: _Pair,
    stride: _Pair = (1, 1),
    padding: _Pair = (0, 0),
    dilation: _Pair = (1, 1),
    **_: Any,
) -> list[int]:
    """Height and width of the outputs."""
    return output_size(x.shape[2:], kernel_size, stride, padding, dilation)


def _fake(x: Tensor, values: Tensor, *rest: Any, **geometry: Any) -> Tensor:
    return empty_images((x.shape[0], rest[2].shape[0] - 1, *_size_of(x, **geometry)), x)


def _setup(ctx: Any, inputs: Any, output: Any) -> None:
    x, values, bias, probe, *index = inputs
    ctx.activation = ctx.options.get("activation", "none")
    y = output if ctx.activation == "relu" else None
    ctx.save_for_backward(x, values, y, bias if is_gelu(ctx.activation) else None, *index)
    ctx.has_probe = probe is not None


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, values, y, bias, *index = ctx.saved_tensors
    needs_x, needs_values, needs_bias, needs_probe, *_ = ctx.needs_input_grad
    options = {key: value for key, value in ctx.options.items() if key != "activation"}
    geometry = {key: value for key, value in options.items() if key != "variant"}
    dtype = x.dtype
    if y is not None:
        grad = torch.ops.aten.threshold_backward(grad, y, 0)
    elif is_gelu(ctx.activation):
        # NOTE: for those who call the op itself, as in csr_linear.
        x = x.to(values.dtype)  # 16 bits would be rounded twice
        z = conv2d_op.without_gradient(x, values, bias, None, *index, **options)
        grad = activation_gradient(grad.to(values.dtype), ctx.activation, z)
    dense_grad = None
    if ctx.has_probe and needs_probe:
        # NOTE: with the dense gradient at hand the kept part is gathered, not computed again.
        dense_grad = _dense_gradients(grad, x, values, index, [False, True, False], **geometry)[1]
    mask = [needs_x, needs_values and dense_grad is None, needs_bias]
    dx, dvalues, dbias = conv2d_backward_op.without_gradient(
        grad, x, values, *index, mask, **options
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


def _dense_gradients(
    grad: Tensor,
    x: Tensor,
    values: Tensor,
    index: Sequence[Tensor],
    wanted: list[bool],
    *,
    kernel_size: _Pair,
    stride: _Pair = (1, 1),
    padding: _Pair = (0, 0),
    dilation: _Pair = (1, 1),
    groups: int = 1,
) -> tuple[Tensor, Tensor, Tensor]:
    """torch's gradients of x, of the dense weight as a matrix ``[O, ...]``, and of the bias."""
    weight = _weight(values, index, kernel_size, oracle=True)
    dx, dweight, dbias = torch.ops.aten.convolution_backward(
        grad.to(values.dtype),
        x.to(values.dtype),
        weight,
        [weight.shape[0]],
        list(stride),
        list(padding),
        list(dilation),
        False,
        [0, 0],
        groups,
        wanted,
    )
    return dx, dweight.flatten(1) if wanted[1] else dweight, dbias


def _backward_reference(
    grad: Tensor, x: Tensor, values: Tensor, *rest: Any, **geometry: Any
) -> tuple[Tensor, Tensor, Tensor]:
    *index, output_mask = rest
    dx, dweight, dbias = _dense_gradients(grad, x, values, index, list(output_mask), **geometry)
    return (
        dx.to(x.dtype).contiguous(memory_format=memory_format(x))
        if output_mask[0]
        else x.new_empty(0),
        gather_op.reference(dweight, index[0], index[1]) if output_mask[1] else values.new_empty(0),
        dbias if output_mask[2] else values.new_empty(0),
    )


def _check_backward(grad: Tensor, x: Tensor, values: Tensor, *rest: Any, **geometry: Any) -> None:
    *index, output_mask = rest
    _check(x, values, None, None, *index, **geometry)
    check_shape(grad, "grad", _fake(x.to("meta"), values, None, None, index[0], **geometry).shape)
    check_dtype(grad, "grad", (x.dtype,))
    if len(output_mask) != 3:
        raise ValueError(f"Expected output_mask to have 3 entries. Got {len(output_mask)}.")


def _fake_backward(
    grad: Tensor, x: Tensor, values: Tensor, *rest: Any, **geometry: Any
) -> tuple[Tensor, Tensor, Tensor]:
    *index, output_mask = rest
    return (
        empty_images(x.shape, x) if output_mask[0] else x.new_empty(0),
        values.new_empty(values.shape if output_mask[1] else (0,)),
        values.new_empty((index[0].shape[0] - 1) if output_mask[2] else 0),
    )


def _supports_patch(*args: Any, **_: Any) -> str | None:
    if not native.loaded:
        return f"the native library is not loaded: {native.reason}"
    if args[0].device.type != "cpu":
        return f"it runs on the CPU. Got {args[0].device}."
    return None


def _select(x: Tensor, values: Tensor, *rest: Any, **geometry: Any) -> str:
    if x.device.type == "cuda":
        _, _, crow, _, crow_t, *_ = rest
        weights = (crow.shape[0] - 1) * (crow_t.shape[0] - 1) * math.prod(geometry["kernel_size"])
        positions = x.shape[0] * math.prod(_size_of(x, **geometry))
        return _cuda.select(_TRITON, values.shape[0] / max(weights, 1), positions, x, values)
    return "patch" if native.loaded and x.device.type == "cpu" else "reference"


def _select_backward(grad: Tensor, x: Tensor, values: Tensor, *rest: Any, **geometry: Any) -> str:
    chosen = _select(x, values, None, None, *rest, **geometry)
    return "reference" if chosen == "dense" else chosen


_TRITON = Launcher("csr.conv2d", "conv2d", _cuda.limits)


def _cost(x: Tensor, values: Tensor, *rest: Any, **geometry: Any) -> Cost:
    pixels = _fake(x.to("meta"), values, *rest, **geometry)
    size = x.element_size()
    flops = 2 * values.numel() * pixels.shape[0] * math.prod(pixels.shape[2:])
    return Cost(flops, x.numel() * size + 8 * values.numel(), pixels.numel() * size)


def _backward_cost(grad: Tensor, x: Tensor, values: Tensor, *rest: Any, **geometry: Any) -> Cost:
    mask, size = rest[-1], x.element_size()
    products = int(mask[0]) + int(mask[1])
    flops = 2 * products * values.numel() * grad.shape[0] * math.prod(grad.shape[2:])
    read = (grad.numel() + x.numel() * mask[1]) * size + 8 * products * values.numel()
    return Cost(flops, read, x.numel() * size * mask[0] + 4 * values.numel() * mask[1])


conv2d_backward_op = define_op(
    f"csr_conv2d_backward(Tensor grad, Tensor x, Tensor values, {_INDEX}, bool[3] output_mask, *, "
    f"{_GEOMETRY}, str variant='auto') -> (Tensor, Tensor, Tensor)",
    reference=_backward_reference,
    check=_check_backward,
    fake=_fake_backward,
    setup=None,
    backward="second derivatives are not computed; use sparsekern.densify(model) for them.",
    variants=(Variant("patch", _supports_patch),),
    select=_select_backward,
    samples=samples.backward_samples,
    errors=samples.backward_errors,
    cost=_backward_cost,
    triton=Launcher("csr.conv2d", "conv2d_backward", _cuda.limits),
)

conv2d_op = define_op(
    f"csr_conv2d(Tensor x, Tensor values, Tensor? bias, Tensor? probe, {_INDEX}, *, {_GEOMETRY}, "
    "str activation='none', str variant='auto') -> Tensor",
    reference=_reference,
    check=_check,
    fake=_fake,
    setup=_setup,
    backward=_backward,
    variants=(
        Variant("patch", _supports_patch),
        Variant("dense", lambda *_, **__: None, _dense),
    ),
    select=_select,
    samples=samples.samples,
    errors=samples.errors,
    cost=_cost,
    triton=_TRITON,
)


def conv2d(
    x: Tensor,
    values: Tensor,
    index: CsrIndex,
    bias: Tensor | None = None,
    *,
    kernel_size: _Pair,
    stride: _Pair = (1, 1),
    padding: _Pair = (0, 0),
    dilation: _Pair = (1, 1),
    groups: int = 1,
    probe: Tensor | None = None,
    activation: str = "none",
    variant: str = "auto",
) -> Tensor:
    """``z[n, o, i, j] = bias[o] + sum W[o, c, ky, kx] x[n, c, i s - p + ky d, j s - p + kx d]``,
    ``y = activation(z)``.

    ``W[o, c, ky, kx]`` is ``values[e]`` for the entry ``e`` of row ``o`` with column
    ``(c * kh + ky) * kw + kx``, zero where there is none; ``x`` is zero outside of its borders.

    Args:
        x: ``[N, I, H, W]`` float32, float64, bfloat16 or float16; of any strides.
        values: ``[nnz]`` float32 (float64 with a float64 ``x``) in row-major order of the mask;
            16-bit values are widened first.
        index: of the mask ``[O, I / groups, kh, kw]``, from :func:`index_from_mask`.
        bias: ``[O]``, or None.
        kernel_size, stride, padding, dilation: pairs for height and width.
        groups: divides ``I`` and ``O``.
        probe: ``[O, I / groups * kh * kw]`` zeros (stride 0) whose gradient is the dense gradient
            of ``W``, or None.
        activation: as for :func:`sparsekern.ops.csr.linear`.
        variant: "auto", or one of: "patch" (native CPU), "triton" (CUDA, unconfirmed), "dense"
            (scatter into scratch and torch's dense kernels), "reference". On CUDA, "auto" is
            "triton" up to density 0.01, for at most 64 output pixels up to 0.05, else "dense".

    Returns:
        ``[N, O, H', W']`` of the dtype and memory format of ``x``.

    Raises:
        TypeError, ValueError: shapes, dtypes, devices or a geometry that do not fit; an unknown
            activation or variant.
        NotImplementedError: a variant that cannot run here, with the reason; second derivatives.

    Gradients: of ``x``, ``values`` (float32 for 16-bit ``x``), ``bias`` and ``probe``. NaN or
    infinity in ``x`` or in the gradient may reach gradients of values of its channel that do not
    touch it, and in a value, pixels that it takes from the padding; it passes no dropped weight.
    Deterministic: "patch" gives the same bits for any number of threads, "triton" in every run.
    Cost: ``2 N H' W' nnz`` flops forward, twice that backward; no im2col in memory.
    Reference: patches of output pixels as in docs/cpu_kernels.md.
    """
    if values.dtype in (torch.bfloat16, torch.float16):
        values = values.float()
    if bias is not None and bias.dtype != values.dtype:
        bias = bias.to(values.dtype)
    fused = activation
    if is_gelu(activation) and wants_gradient(x, values, bias, probe):
        fused = "none"
    y = conv2d_op(
        x,
        values,
        bias,
        probe,
        *(getattr(index, name) for name in INDEX_NAMES),
        kernel_size=tuple(kernel_size),
        stride=tuple(stride),
        padding=tuple(padding),
        dilation=tuple(dilation),
        groups=groups,
        activation=fused,
        variant=variant,
    )
    return activate(y, activation) if fused != activation else y


__all__ = ["conv2d", "conv2d_backward_op", "conv2d_op"]
