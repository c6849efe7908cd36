"""``bsr_conv2d``: a convolution whose weight is stored as dense blocks in compressed rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sparsekern._checks import check_dtype, check_shape, check_tensor
from sparsekern.ops._define import Cost, Variant, define_op
from sparsekern.ops._geometry import check_geometry, memory_format, output_size
from sparsekern.ops.bsr import _conv_variants as variants
from sparsekern.ops.bsr import _convolutions as samples
from sparsekern.ops.bsr.dense import gather, gather_op, to_dense, to_dense_op
from sparsekern.ops.bsr.index import BsrIndex, as_matrix, from_matrix
from sparsekern.ops.csr._checks import check_operands

_INDEX = "Tensor crow, Tensor col, Tensor crow_t, Tensor col_t, Tensor perm"
_GEOMETRY = (
    "SymInt[2] kernel_size, SymInt[2] stride=1, SymInt[2] padding=0, SymInt[2] dilation=1, "
    "SymInt groups=1, str variant='auto'"
)
_Pair = Sequence[int]


def _weight(values: Tensor, index: Sequence[Tensor], kernel_size: _Pair, oracle: bool) -> Tensor:
    """The dense weight ``[O, I / groups, kh, kw]``."""
    crow, col, crow_t, *_ = index
    scatter = to_dense_op.reference if oracle else to_dense
    matrix: Tensor = scatter(values, crow, col, crow_t.shape[0] - 1)
    return _from_matrix(matrix, kernel_size)


def _from_matrix(matrix: Tensor, kernel_size: _Pair) -> Tensor:
    channels = matrix.shape[1] // (kernel_size[0] * kernel_size[1])
    return from_matrix(matrix, (matrix.shape[0], channels, *kernel_size))


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
) -> Tensor:
    """Plain torch, accumulated in the dtype of ``values``."""
    weight = _weight(values, index, kernel_size, oracle=True)
    if probe is not None:
        weight = weight + _from_matrix(probe, kernel_size)
    y = F.conv2d(x.to(values.dtype), weight, bias, stride, padding, dilation, groups)
    return y.to(x.dtype).contiguous(memory_format=_format(x))


def _format(x: Tensor) -> torch.memory_format:
    """Of outputs: that of ``x``, but native CPU code writes NCHW."""
    return torch.contiguous_format if x.device.type == "cpu" else memory_format(x)


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
) -> Tensor:
    """Scatter into scratch, then torch's own dense kernels in the dtype of ``x``."""
    weight = _weight(values, index, kernel_size, oracle=False)
    if probe is not None:
        weight = weight + _from_matrix(probe, kernel_size)
    offset = None if bias is None else bias.to(x.dtype)
    return F.conv2d(x, weight.to(x.dtype), offset, stride, padding, dilation, groups)


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
) -> None:
    check_tensor(x, "x", ndim=4)
    check_tensor(values, "values", ndim=3)
    block = tuple(values.shape[1:])
    if 0 in block:
        raise ValueError(f"Expected values to have blocks with elements. Got {block}.")
    rows, columns = _sizes(values, index)
    check_geometry(kernel_size, stride, padding, dilation)
    if groups < 1 or rows % groups != 0:
        raise ValueError(f"Expected groups to divide {rows} output channels. Got {groups}.")
    taps = kernel_size[0] * kernel_size[1]
    channels = columns // taps
    if columns % taps != 0 or channels % block[1] != 0:
        raise ValueError(
            f"Expected each of {taps} taps to have whole blocks of {block[1]} channels. Got "
            f"{columns} columns."
        )
    if x.shape[1] != channels * groups or channels < 1:
        raise ValueError(
            f"Expected x to have {channels * groups} channels. Got shape {tuple(x.shape)}."
        )
    if min(output_size(x.shape[2:], kernel_size, stride, padding, dilation)) < 1:
        raise ValueError(
            f"Expected x to be as large as the kernel, {tuple(kernel_size)} with dilation "
            f"{tuple(dilation)}, once padded by {tuple(padding)}. Got shape {tuple(x.shape)}."
        )
    named = dict(zip(BsrIndex._fields, index, strict=True))
    check_operands(x, values, bias, probe, (rows, columns), named, block)


def _sizes(values: Tensor, index: Sequence[Tensor]) -> tuple[int, int]:
    """Rows and columns of the weight as a matrix."""
    return (index[0].shape[0] - 1) * values.shape[1], (index[2].shape[0] - 1) * values.shape[2]


def _fake(x: Tensor, values: Tensor, *rest: Any, **geometry: Any) -> Tensor:
    size = output_size(
        x.shape[2:],
        geometry["kernel_size"],
        geometry.get("stride", (1, 1)),
        geometry.get("padding", (0, 0)),
        geometry.get("dilation", (1, 1)),
    )
    shape = (x.shape[0], (rest[2].shape[0] - 1) * values.shape[1], *size)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=_format(x))


def _setup(ctx: Any, inputs: Any, output: Any) -> None:
    x, values, _, probe, *index = inputs
    ctx.save_for_backward(x, values, *index)
    ctx.has_probe = probe is not None


def _geometry(options: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in options.items() if key != "variant"}


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, values, *index = ctx.saved_tensors
    needs_x, needs_values, needs_bias, needs_probe, *_ = ctx.needs_input_grad
    geometry = _geometry(ctx.options)
    dense_grad = None
    if ctx.has_probe and needs_probe:
        # NOTE: with the dense gradient at hand the kept part is gathered, not computed again.
        dense_grad = _dense_gradients(grad, x, values, index, [False, True, False], **geometry)[1]
    mask = [needs_x, needs_values and dense_grad is None, needs_bias]
    dx, dvalues, dbias = conv2d_backward_op.without_gradient(
        grad, x, values, *index, mask, **ctx.options
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
    return dx, as_matrix(dweight) if wanted[1] else dweight, dbias


def _backward_reference(
    grad: Tensor, x: Tensor, values: Tensor, *rest: Any, **geometry: Any
) -> tuple[Tensor, Tensor, Tensor]:
    *index, output_mask = rest
    dx, dweight, dbias = _dense_gradients(grad, x, values, index, list(output_mask), **geometry)
    return (
        dx.to(x.dtype).contiguous(memory_format=_format(x)) if output_mask[0] else x.new_empty(0),
        gather_op.reference(dweight, index[0], index[1], *values.shape[1:])
        if output_mask[1]
        else values.new_empty(0),
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
        torch.empty_like(x, memory_format=_format(x)) if output_mask[0] else x.new_empty(0),
        values.new_empty(values.shape if output_mask[1] else (0,)),
        values.new_empty(_sizes(values, index)[0] if output_mask[2] else 0),
    )


def _cost(x: Tensor, values: Tensor, *rest: Any, **geometry: Any) -> Cost:
    pixels = _fake(x.to("meta"), values, *rest, **geometry)
    size = x.element_size()
    flops = 2 * values.numel() * pixels.shape[0] * math.prod(pixels.shape[2:])
    return Cost(flops, x.numel() * size + 4 * values.numel(), pixels.numel() * size)


def _backward_cost(grad: Tensor, x: Tensor, values: Tensor, *rest: Any, **geometry: Any) -> Cost:
    mask, size = rest[-1], x.element_size()
    products = int(mask[0]) + int(mask[1])
    flops = 2 * products * values.numel() * grad.shape[0] * math.prod(grad.shape[2:])
    read = (grad.numel() + x.numel() * mask[1]) * size + 8 * products * values.numel()
    return Cost(flops, read, x.numel() * size * mask[0] + 4 * values.numel() * mask[1])


conv2d_backward_op = define_op(
    f"bsr_conv2d_backward(Tensor grad, Tensor x, Tensor values, {_INDEX}, bool[3] output_mask, *, "
    f"{_GEOMETRY}) -> (Tensor, Tensor, Tensor)",
    reference=_backward_reference,
    check=_check_backward,
    fake=_fake_backward,
    setup=None,
    backward="second derivatives are not computed; use sparsekern.densify(model) for them.",
    variants=(Variant("plane", variants.supports_plane_backward),),
    select=variants.select_backward,
    samples=samples.backward_samples,
    errors=samples.backward_errors,
    cost=_backward_cost,
    triton=variants.TRITON_BACKWARD,
)

conv2d_op = define_op(
    f"bsr_conv2d(Tensor x, Tensor values, Tensor? bias, Tensor? probe, {_INDEX}, *, {_GEOMETRY}) "
    "-> Tensor",
    reference=_reference,
    check=_check,
    fake=_fake,
    setup=_setup,
    backward=_backward,
    variants=(
        Variant("plane", variants.supports_plane),
        Variant("dense", lambda *_, **__: None, _dense),
    ),
    select=variants.select,
    samples=samples.samples,
    errors=samples.errors,
    cost=_cost,
    triton=variants.TRITON,
)


def conv2d(
    x: Tensor,
    values: Tensor,
    index: BsrIndex,
    bias: Tensor | None = None,
    *,
    kernel_size: _Pair,
    stride: _Pair = (1, 1),
    padding: _Pair = (0, 0),
    dilation: _Pair = (1, 1),
    groups: int = 1,
    probe: Tensor | None = None,
    variant: str = "auto",
) -> Tensor:
    """``y[n, o, i, j] = bias[o] + sum W[o, c, ky, kx] x[n, c, i s - p + ky d, j s - p + kx d]``.

    ``W`` as the matrix ``[O, kh * kw * I / groups]``, input channel fastest, is made of the blocks
    ``values`` (:func:`sparsekern.ops.bsr.to_dense`); ``x`` is zero outside of its borders.

    Args:
        x: ``[N, I, H, W]`` float32, float64, bfloat16 or float16; of any strides.
        values: ``[n, h, w]`` float32 (float64 with a float64 ``x``), blocks in row-major order;
            ``w`` divides ``I / groups``; 16-bit values are widened first.
        index: of the ``[O / h, kh * kw * I / groups / w]`` matrix of blocks.
        bias: ``[O]``, or None.
        kernel_size, stride, padding, dilation: pairs for height and width.
        groups: divides ``I`` and ``O``.
        probe: ``[O, kh * kw * I / groups]`` zeros (stride 0) whose gradient is the dense gradient
            of ``W``, or None.
        variant: "auto", or one of: "plane" (native CPU; ``h`` divides ``O / groups``), "triton"
            (CUDA; one group, sides that are multiples of 16, values rounded as in
            :func:`sparsekern.ops.bsr.linear`; channels_last without a copy), "dense" (scatter into
            scratch and torch's dense kernels), "reference".

    Returns:
        ``[N, O, H', W']`` of the dtype and memory format of ``x``.

    Raises:
        TypeError, ValueError: shapes, dtypes, devices or a geometry that do not fit; an unknown
            variant.
        NotImplementedError: a variant that cannot run here, with the reason; second derivatives.

    Gradients: of ``x``, ``values`` (float32 for 16-bit ``x``), ``bias`` and ``probe``. NaN or
    infinity in ``x`` or in the gradient may reach gradients of values of its channel that do not
    touch it, and in a value, pixels that it takes from the padding; it passes no dropped weight.
    Deterministic: "plane" gives the same bits for any number of threads.
    Cost: ``2 N H' W' n h w`` flops forward, twice that backward; no im2col in memory.
    Reference: padded planes as in docs/cpu_kernels.md.
    """
    if values.dtype in (torch.bfloat16, torch.float16):
        values = values.float()
    if bias is not None and bias.dtype != values.dtype:
        bias = bias.to(values.dtype)
    last = not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    y = conv2d_op(
        x,
        values,
        bias,
        probe,
        *index,
        kernel_size=tuple(kernel_size),
        stride=tuple(stride),
        padding=tuple(padding),
        dilation=tuple(dilation),
        groups=groups,
        variant=variant,
    )
    return y.contiguous(memory_format=torch.channels_last) if last else y


__all__ = ["conv2d", "conv2d_backward_op", "conv2d_op"]
