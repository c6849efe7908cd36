"""``mask_conv2d``: a dense convolution whose weight gradient is masked."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sparsekern._checks import check_device, check_dtype, check_shape, check_tensor
from sparsekern.ops._define import Cost, Sample, define_op
from sparsekern.ops._geometry import check_geometry, output_size
from sparsekern.ops.mask.bits import _check_bits, apply_op, pack_bits, unpack_bits_op

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def _reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    probe: Tensor | None,
    bits: Tensor,
    *geometry: Any,
) -> Tensor:
    masked = weight * unpack_bits_op.reference(bits, weight.shape)
    if probe is not None:
        masked = masked + probe.view(weight.shape)
    return F.conv2d(x, masked.to(x.dtype), None if bias is None else bias.to(x.dtype), *geometry)


def _kernel(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    probe: Tensor | None,
    bits: Tensor,
    *geometry: Any,
) -> Tensor:
    """The reference without its multiplication: masked weights are zero already."""
    return F.conv2d(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype), *geometry)


def _check(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    probe: Tensor | None,
    bits: Tensor,
    *geometry: Any,
) -> None:
    check_tensor(x, "x", ndim=4)
    check_tensor(weight, "weight", ndim=4)
    stride, padding, dilation, groups = geometry
    check_geometry(weight.shape[2:], stride, padding, dilation)
    if groups < 1 or weight.shape[0] % groups != 0:
        raise ValueError(
            f"Expected groups to divide {weight.shape[0]} output channels. Got {groups}."
        )
    if x.shape[1] != weight.shape[1] * groups:
        raise ValueError(
            f"Expected x to have {weight.shape[1] * groups} channels. Got shape {tuple(x.shape)}."
        )
    if min(_output_shape(x, weight, *geometry)[2:]) < 1:
        raise ValueError(
            f"Expected x to be as large as the kernel, {tuple(weight.shape[2:])}, with its padding "
            f"and dilation. Got shape {tuple(x.shape)}."
        )
    check_dtype(x, "x", _DTYPES)
    check_dtype(weight, "weight", _DTYPES)
    check_device(x, "x", weight.device, "weight")
    if bias is not None:
        check_shape(bias, "bias", weight.shape[:1])
    if probe is not None:
        check_shape(probe, "probe", (weight.shape[0], math.prod(weight.shape[1:])))
    _check_bits(bits, weight.numel())
    check_device(bits, "bits", weight.device, "weight")


def _output_shape(
    x: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> tuple[int, int, int, int]:
    size = output_size(x.shape[2:], weight.shape[2:], stride, padding, dilation)
    return x.shape[0], weight.shape[0], size[0], size[1]


def _fake(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    probe: Tensor | None,
    bits: Tensor,
    *geometry: Any,
) -> Tensor:
    # torch lays the output out as it likes (channels_last in, channels_last out): ask it.
    return F.conv2d(x, weight.to(x.dtype), None, *geometry)


def _setup(ctx: Any, inputs: Any, output: Any) -> None:
    x, weight, bias, probe, bits, *geometry = inputs
    ctx.save_for_backward(x, weight, bits)
    ctx.geometry = geometry
    ctx.bias_dtype = None if bias is None else bias.dtype
    ctx.has_probe = probe is not None


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, bits = ctx.saved_tensors
    needs_x, needs_weight, needs_bias, needs_probe, *_ = ctx.needs_input_grad
    mask = [needs_x, needs_weight, needs_bias, ctx.has_probe and needs_probe]
    dx, dweight, dbias, dense = conv2d_backward_op.without_gradient(
        grad, x, weight, bits, *ctx.geometry, mask
    )
    gradients = (
        dx if needs_x else None,
        dweight if needs_weight else None,
        dbias.to(ctx.bias_dtype) if needs_bias else None,
        dense if mask[3] else None,
    )
    return *gradients, None, *(None for _ in ctx.geometry)


def _torch_backward(
    grad: Tensor, x: Tensor, weight: Tensor, geometry: Sequence[Any], output_mask: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """torch's own gradients, unmasked; the fourth entry of the mask asks for the weight's too."""
    stride, padding, dilation, groups = geometry
    wanted = [output_mask[0], output_mask[1] or output_mask[3], output_mask[2]]
    sizes, no_shift = [weight.shape[0]], [0, 0]
    gradients = torch.ops.aten.convolution_backward(
        grad,
        x,
        weight.to(x.dtype),
        sizes,
        stride,
        padding,
        dilation,
        False,
        no_shift,
        groups,
        wanted,
    )
    return gradients[0], gradients[1], gradients[2]


def _backward_reference(
    grad: Tensor, x: Tensor, weight: Tensor, bits: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    *geometry, output_mask = rest
    dx, dense, dbias = _torch_backward(grad, x, weight, geometry, output_mask)
    empty, masked, flat = weight.new_empty(0), None, None
    if dense is not None:
        dense = dense.to(weight.dtype).contiguous()
        masked = dense.masked_fill(~unpack_bits_op.reference(bits, weight.shape), 0)
        flat = dense.flatten(1).clone()
    return (
        x.new_empty(0) if dx is None else dx,
        masked if output_mask[1] and masked is not None else empty,
        grad.new_empty(0) if dbias is None else dbias,
        flat if output_mask[3] and flat is not None else weight.new_empty(0),
    )


def _backward_kernel(
    grad: Tensor, x: Tensor, weight: Tensor, bits: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The reference with the mask applied in place."""
    *geometry, output_mask = rest
    dx, product, dbias = _torch_backward(grad, x, weight, geometry, output_mask)
    dweight, flat = weight.new_empty(0), weight.new_empty(0)
    if product is not None:
        product = product.to(weight.dtype).contiguous()
        if output_mask[3]:
            flat = product.flatten(1).clone() if output_mask[1] else product.flatten(1)
        if output_mask[1]:
            apply_op.overload(product, bits)
            dweight = product
    return (
        x.new_empty(0) if dx is None else dx,
        dweight,
        grad.new_empty(0) if dbias is None else dbias,
        flat,
    )


def _check_backward(grad: Tensor, x: Tensor, weight: Tensor, bits: Tensor, *rest: Any) -> None:
    *geometry, output_mask = rest
    _check(x, weight, None, None, bits, *geometry)
    check_shape(grad, "grad", _output_shape(x, weight, *geometry))
    check_dtype(grad, "grad", (x.dtype,))
    if len(output_mask) != 4:
        raise ValueError(f"Expected output_mask to have 4 entries. Got {len(output_mask)}.")


def _fake_backward(
    grad: Tensor, x: Tensor, weight: Tensor, bits: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    *geometry, output_mask = rest
    dx, _, _ = _torch_backward(grad, x, weight, geometry, output_mask)
    rows = weight.shape[0]
    return (
        x.new_empty(0) if dx is None else dx,
        weight.new_empty(weight.shape if output_mask[1] else (0,)),
        grad.new_empty((rows,) if output_mask[2] else (0,)),
        weight.new_empty((rows, weight.numel() // max(1, rows)) if output_mask[3] else (0,)),
    )


def _samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    generator = torch.Generator().manual_seed(0)

    def arguments(shape: tuple[int, ...], size: tuple[int, ...], *geometry: Any) -> tuple[Any, ...]:
        mask = torch.rand(shape, generator=generator) < 0.4
        weight = (torch.randn(shape, generator=generator) * mask).to(device, dtype)
        x = torch.randn(size, generator=generator).to(device, dtype)
        bias = torch.randn(shape[0], generator=generator).to(device, dtype)
        return x, weight, bias, None, pack_bits(mask).to(device), *geometry

    plain = ((1, 1), (1, 1), (1, 1), 1)
    # The promise: weights are zero outside of the mask.
    tiny = arguments((3, 2, 2, 3), (2, 2, 4, 3), *plain)
    yield Sample(tiny, "tiny", small=True, promise=True)
    x, weight, _, _, bits, *geometry = arguments((3, 2, 2, 3), (2, 2, 4, 3), *plain)
    probe = torch.zeros((), device=device, dtype=dtype).expand(3, 12)
    yield Sample((x, weight, None, probe, bits, *geometry), "probe", small=True, promise=True)
    typical = arguments((20, 12, 3, 3), (3, 12, 9, 10), *plain)
    yield Sample(typical, "typical")
    last = typical[0].to(memory_format=torch.channels_last)
    yield Sample((last, *typical[1:]), "channels_last")
    yield Sample(arguments((8, 3, 3, 5), (2, 6, 11, 9), (2, 1), (1, 2), (1, 2), 2), "grouped")
    yield Sample(arguments((7, 5, 1, 1), (2, 5, 6, 6), (2, 2), (0, 0), (1, 1), 1), "pointwise")
    yield Sample(arguments((4, 3, 3, 3), (0, 3, 6, 6), *plain), "no_batch")


def _backward_samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    for sample in _samples(device, dtype):
        x, weight, bias, probe, bits, *geometry = sample.args
        shape = _output_shape(x, weight, *geometry)
        grad = torch.linspace(-1, 1, math.prod(shape), device=device).mul(5).sin()
        mask = [True, True, bias is not None, probe is not None]
        args = (grad.view(shape).to(dtype), x, weight, bits, *geometry, mask)
        yield Sample(args, sample.id, small=sample.small)


def _error_arguments() -> tuple[Tensor, Tensor, Tensor, tuple[Any, ...]]:
    x, weight = torch.zeros(1, 4, 5, 5), torch.zeros(6, 2, 3, 3)
    return x, weight, torch.zeros(14, dtype=torch.uint8), ((1, 1), (0, 0), (1, 1), 2)


def _errors() -> Iterator[tuple[tuple[Any, ...], type[Exception], str]]:
    x, weight, bits, geometry = _error_arguments()
    stride, padding, dilation, groups = geometry
    rest = (None, None, bits, *geometry)
    yield (x[0], weight, *rest), ValueError, "Expected x to have 4 dimensions"
    yield (x, weight[0], *rest), ValueError, "Expected weight to have 4 dimensions"
    yield (x[:, :2], weight, *rest), ValueError, "Expected x to have 4 channels"
    yield (x[..., :2], weight, *rest), ValueError, "Expected x to be as large as the kernel"
    yield (x.long(), weight, *rest), TypeError, "Expected x to have dtype"
    wrong = (x, weight, torch.zeros(3), None, bits, *geometry)
    yield wrong, ValueError, "Expected bias to have shape"
    wrong = (x, weight, None, torch.zeros(3), bits, *geometry)
    yield wrong, ValueError, "Expected probe to have shape"
    yield (x, weight, None, None, bits[:1], *geometry), ValueError, "Expected bits to have shape"
    wrong = (x, weight, None, None, bits, stride, padding, dilation, 4)
    yield wrong, ValueError, "Expected groups to divide 6 output channels"
    wrong = (x, weight, None, None, bits, (0, 1), padding, dilation, groups)
    yield wrong, ValueError, "Expected stride to be two numbers of at least 1"


def _backward_errors() -> Iterator[tuple[tuple[Any, ...], type[Exception], str]]:
    x, weight, bits, geometry = _error_arguments()
    grad, mask = torch.zeros(1, 6, 3, 3), [True] * 4
    wrong = (grad[..., :2], x, weight, bits, *geometry, mask)
    yield wrong, ValueError, "Expected grad to have shape"
    wrong = (grad, x, weight, bits, *geometry, mask[:2])
    yield wrong, ValueError, "Expected output_mask to have 4"


def _cost(x: Tensor, weight: Tensor, *rest: Any) -> Cost:
    *_, stride, padding, dilation, groups = rest
    size = x.element_size()
    outputs = math.prod(_output_shape(x, weight, stride, padding, dilation, groups))
    taps = math.prod(weight.shape[1:])
    return Cost(2 * outputs * taps, size * (x.numel() + weight.numel()), size * outputs)


def _backward_cost(grad: Tensor, x: Tensor, weight: Tensor, *rest: Any) -> Cost:
    output_mask, size = rest[-1], x.element_size()
    products = int(output_mask[0]) + int(output_mask[1] or output_mask[3])
    read = size * (grad.numel() + x.numel() + weight.numel())
    flops = 2 * products * grad.numel() * math.prod(weight.shape[1:])
    return Cost(flops, read, size * (x.numel() + weight.numel()))


_GEOMETRY = "int[] stride, int[] padding, int[] dilation, int groups"

conv2d_backward_op = define_op(
    f"mask_conv2d_backward(Tensor grad, Tensor x, Tensor weight, Tensor bits, {_GEOMETRY}, "
    "bool[4] output_mask) -> (Tensor, Tensor, Tensor, Tensor)",
    reference=_backward_reference,
    kernel=_backward_kernel,
    check=_check_backward,
    fake=_fake_backward,
    setup=None,
    backward="second derivatives are not computed; use sparsekern.densify(model) for them.",
    samples=_backward_samples,
    errors=_backward_errors,
    cost=_backward_cost,
)

conv2d_op = define_op(
    "mask_conv2d(Tensor x, Tensor weight, Tensor? bias, Tensor? probe, Tensor bits, "
    f"{_GEOMETRY}) -> Tensor",
    reference=_reference,
    kernel=_kernel,
    check=_check,
    fake=_fake,
    setup=_setup,
    backward=_backward,
    samples=_samples,
    errors=_errors,
    cost=_cost,
)


def conv2d(
    x: Tensor,
    weight: Tensor,
    bits: Tensor,
    bias: Tensor | None = None,
    *,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
    probe: Tensor | None = None,
) -> Tensor:
    """torch's convolution with a ``W`` that is zero outside of its mask; its gradient is masked.

    Args:
        x: ``[N, C, H, W]``, any float dtype and memory format.
        weight: ``[O, C / groups, kh, kw]``, already zero wherever its mask is (the caller's
            promise).
        bits: the packed mask, uint8 ``[ceil(numel / 8)]``.
        bias: ``[O]``, or None.
        stride, padding, dilation: two numbers each.
        groups: divides both numbers of channels.
        probe: ``[O, C / groups * kh * kw]`` zeros (stride 0) whose gradient is the unmasked
            gradient, or None.

    Returns:
        ``[N, O, H', W']`` of the dtype of ``x``.

    Raises:
        TypeError, ValueError: shapes, dtypes or devices that do not fit.
        NotImplementedError: second derivatives.

    Gradients: of ``x``, ``weight`` (zero outside of the mask), ``bias`` and ``probe``.
    Deterministic as torch's convolution is.
    Cost: the dense layer's, and one pass over the gradient.
    """
    return conv2d_op(x, weight, bias, probe, bits, stride, padding, dilation, groups)


__all__ = ["conv2d", "conv2d_backward_op", "conv2d_op"]
