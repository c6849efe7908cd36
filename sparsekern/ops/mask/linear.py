"""``mask_linear``: a dense linear layer whose weight gradient is masked."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sparsekern._checks import as_rows, check_device, check_dtype, check_shape, check_tensor
from sparsekern.ops._define import Cost, Sample, define_op
from sparsekern.ops.mask.bits import _check_bits, apply_op, pack_bits, unpack_bits_op

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def _reference(
    x: Tensor, weight: Tensor, bias: Tensor | None, probe: Tensor | None, bits: Tensor
) -> Tensor:
    masked = weight * unpack_bits_op.reference(bits, weight.shape)
    if probe is not None:
        masked = masked + probe
    return F.linear(x, masked.to(x.dtype), None if bias is None else bias.to(x.dtype))


def _kernel(
    x: Tensor, weight: Tensor, bias: Tensor | None, probe: Tensor | None, bits: Tensor
) -> Tensor:
    """The reference without its multiplication: masked weights are zero already."""
    return F.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))


def _check(
    x: Tensor, weight: Tensor, bias: Tensor | None, probe: Tensor | None, bits: Tensor
) -> None:
    check_tensor(x, "x")
    check_tensor(weight, "weight", ndim=2)
    rows, cols = weight.shape
    if x.ndim < 1 or x.shape[-1] != cols:
        raise ValueError(
            f"Expected x to have {cols} features in its last dimension. Got shape {tuple(x.shape)}."
        )
    check_dtype(x, "x", _DTYPES)
    check_dtype(weight, "weight", _DTYPES)
    check_device(x, "x", weight.device, "weight")
    if bias is not None:
        check_shape(bias, "bias", (rows,))
    if probe is not None:
        check_shape(probe, "probe", (rows, cols))
    _check_bits(bits, weight.numel())
    check_device(bits, "bits", weight.device, "weight")


def _fake(
    x: Tensor, weight: Tensor, bias: Tensor | None, probe: Tensor | None, bits: Tensor
) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


def _setup(ctx: Any, inputs: Any, output: Any) -> None:
    x, weight, bias, probe, bits = inputs
    ctx.save_for_backward(x, weight, bits)
    ctx.bias_dtype = None if bias is None else bias.dtype
    ctx.has_probe = probe is not None


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, bits = ctx.saved_tensors
    needs_x, needs_weight, needs_bias, needs_probe, *_ = ctx.needs_input_grad
    mask = [needs_x, needs_weight, needs_bias, ctx.has_probe and needs_probe]
    dx, dweight, dbias, dense = linear_backward_op.without_gradient(grad, x, weight, bits, mask)
    return (
        dx if needs_x else None,
        dweight if needs_weight else None,
        dbias.to(ctx.bias_dtype) if needs_bias else None,
        dense if mask[3] else None,
        None,
    )


def _backward_reference(
    grad: Tensor, x: Tensor, weight: Tensor, bits: Tensor, output_mask: list[bool]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    flat_grad, flat_x = as_rows(grad), as_rows(x)
    dense = (flat_grad.t() @ flat_x).to(weight.dtype)
    masked = dense.masked_fill(~unpack_bits_op.reference(bits, weight.shape), 0)
    return (
        (flat_grad @ weight.to(grad.dtype)).view(x.shape) if output_mask[0] else x.new_empty(0),
        masked if output_mask[1] else weight.new_empty(0),
        flat_grad.sum(0) if output_mask[2] else grad.new_empty(0),
        dense if output_mask[3] else weight.new_empty(0),
    )


def _backward_kernel(
    grad: Tensor, x: Tensor, weight: Tensor, bits: Tensor, output_mask: list[bool]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The reference with the mask applied in place, and without what is not wanted."""
    flat_grad, flat_x = as_rows(grad), as_rows(x)
    dx = (flat_grad @ weight.to(grad.dtype)).view(x.shape) if output_mask[0] else x.new_empty(0)
    dweight = dense = weight.new_empty(0)
    if output_mask[1] or output_mask[3]:
        product = (flat_grad.t() @ flat_x).to(weight.dtype)
        dense = product.clone() if output_mask[3] and output_mask[1] else product
        if output_mask[1]:
            dweight = product
            apply_op.overload(dweight, bits)
    dbias = flat_grad.sum(0) if output_mask[2] else grad.new_empty(0)
    return dx, dweight, dbias, dense if output_mask[3] else weight.new_empty(0)


def _check_backward(
    grad: Tensor, x: Tensor, weight: Tensor, bits: Tensor, output_mask: list[bool]
) -> None:
    _check(x, weight, None, None, bits)
    check_shape(grad, "grad", (*x.shape[:-1], weight.shape[0]))
    check_dtype(grad, "grad", (x.dtype,))
    if len(output_mask) != 4:
        raise ValueError(f"Expected output_mask to have 4 entries. Got {len(output_mask)}.")


def _fake_backward(
    grad: Tensor, x: Tensor, weight: Tensor, bits: Tensor, output_mask: list[bool]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return (
        x.new_empty(x.shape if output_mask[0] else (0,)),
        weight.new_empty(weight.shape if output_mask[1] else (0,)),
        grad.new_empty((grad.shape[-1],) if output_mask[2] else (0,)),
        weight.new_empty(weight.shape if output_mask[3] else (0,)),
    )


def _samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    generator = torch.Generator().manual_seed(0)

    def arguments(rows: int, cols: int, *batch: int, bias: bool = True) -> tuple[Any, ...]:
        mask = torch.rand(rows, cols, generator=generator) < 0.4
        weight = torch.randn(rows, cols, generator=generator) * mask
        x = torch.randn(*batch, cols, generator=generator)
        b = torch.randn(rows, generator=generator).to(device, dtype) if bias else None
        return x.to(device, dtype), weight.to(device, dtype), b, None, pack_bits(mask).to(device)

    # The promise: weights are zero outside of the mask.
    yield Sample(arguments(3, 4, 6), "tiny", small=True, promise=True)
    yield Sample(arguments(33, 70, 17), "typical")
    yield Sample(arguments(33, 70, 2, 5, bias=False), "leading_dimensions_no_bias")
    yield Sample(arguments(5, 9, 0), "no_batch")
    x, weight, bias, _, bits = arguments(3, 4, 6)
    probe = torch.zeros((), device=device, dtype=dtype).expand(3, 4)
    yield Sample((x, weight, bias, probe, bits), "probe", small=True, promise=True)


def _backward_samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    for sample in _samples(device, dtype):
        x, weight, bias, probe, bits = sample.args
        grad = torch.linspace(-1, 1, math.prod(x.shape[:-1]) * weight.shape[0], device=device)
        grad = grad.sin().view(*x.shape[:-1], weight.shape[0]).to(dtype)
        mask = [True, True, bias is not None, probe is not None]
        yield Sample((grad, x, weight, bits, mask), sample.id, small=sample.small)


def _errors() -> Iterator[tuple[tuple[Any, ...], type[Exception], str]]:
    x, weight, bits = torch.zeros(2, 3), torch.zeros(4, 3), torch.zeros(2, dtype=torch.uint8)
    yield (x[:, :2], weight, None, None, bits), ValueError, "Expected x to have 3 features"
    yield (x.long(), weight, None, None, bits), TypeError, "Expected x to have dtype"
    yield (x, weight, torch.zeros(3), None, bits), ValueError, "Expected bias to have shape"
    yield (x, weight, None, torch.zeros(3), bits), ValueError, "Expected probe to have shape"
    yield (x, weight, None, None, bits[:1]), ValueError, "Expected bits to have shape"


def _backward_errors() -> Iterator[tuple[tuple[Any, ...], type[Exception], str]]:
    x, weight, bits = torch.zeros(2, 3), torch.zeros(4, 3), torch.zeros(2, dtype=torch.uint8)
    mask = [True] * 4
    yield (torch.zeros(3, 4), x, weight, bits, mask), ValueError, "Expected grad to have shape"
    yield (
        (torch.zeros(2, 4), x, weight, bits, mask[:2]),
        ValueError,
        "Expected output_mask to have 4",
    )


def _cost(
    x: Tensor, weight: Tensor, bias: Tensor | None, probe: Tensor | None, bits: Tensor
) -> Cost:
    size = x.element_size()
    outputs = math.prod(x.shape[:-1]) * weight.shape[0]
    return Cost(
        2 * x.numel() * weight.shape[0], size * (x.numel() + weight.numel()), size * outputs
    )


def _backward_cost(
    grad: Tensor, x: Tensor, weight: Tensor, bits: Tensor, output_mask: list[bool]
) -> Cost:
    size = x.element_size()
    products = int(output_mask[0]) + int(output_mask[1] or output_mask[3])
    read = size * (grad.numel() + x.numel() + weight.numel())
    return Cost(
        2 * products * x.numel() * weight.shape[0], read, size * (x.numel() + weight.numel())
    )


linear_backward_op = define_op(
    "mask_linear_backward(Tensor grad, Tensor x, Tensor weight, Tensor bits, bool[4] output_mask) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
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

linear_op = define_op(
    "mask_linear(Tensor x, Tensor weight, Tensor? bias, Tensor? probe, Tensor bits) -> Tensor",
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


def linear(
    x: Tensor,
    weight: Tensor,
    bits: Tensor,
    bias: Tensor | None = None,
    *,
    probe: Tensor | None = None,
) -> Tensor:
    """``y = x W^T + bias``, where ``W`` is zero outside of its mask; its gradient is masked.

    Args:
        x: ``[..., I]``, any float dtype.
        weight: ``[O, I]``, already zero wherever its mask is (the caller's promise).
        bits: the packed mask, uint8 ``[ceil(O I / 8)]``.
        bias: ``[O]``, or None.
        probe: ``[O, I]`` zeros (stride 0) whose gradient is the unmasked gradient, or None.

    Returns:
        ``[..., O]`` of the dtype of ``x``.

    Raises:
        TypeError, ValueError: shapes, dtypes or devices that do not fit.
        NotImplementedError: second derivatives.

    Gradients: of ``x``, ``weight`` (zero outside of the mask), ``bias`` and ``probe``.
    Deterministic as torch's matmul is. Cost: the dense layer's, and one pass over the gradient.
    """
    return linear_op(x, weight, bias, probe, bits)


__all__ = ["linear", "linear_backward_op", "linear_op"]
