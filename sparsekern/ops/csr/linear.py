"""``csr_linear``: a linear layer whose weight is stored in compressed rows."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sparsekern._checks import as_rows, check_dtype, check_shape, check_tensor
from sparsekern._extension import native
from sparsekern.ops._define import Cost, Sample, Variant, define_op
from sparsekern.ops.csr._checks import VALUE_DTYPES, check_operands, fits_on_cpu
from sparsekern.ops.csr._samples import matrices
from sparsekern.ops.csr.dense import gather, gather_op, to_dense, to_dense_op
from sparsekern.ops.csr.index import CsrIndex, build_index, index_from_mask

_INDEX = (
    "Tensor crow, Tensor col, Tensor starts, "
    "Tensor crow_t, Tensor col_t, Tensor perm, Tensor starts_t"
)


def _reference(
    x: Tensor, values: Tensor, bias: Tensor | None, probe: Tensor | None, *index: Tensor
) -> Tensor:
    """Plain torch, accumulated in the dtype of ``values``."""
    crow, col, *_ = index
    weight = to_dense_op.reference(values, crow, col, x.shape[-1])
    if probe is not None:
        weight = weight + probe
    return F.linear(x.to(values.dtype), weight, bias).to(x.dtype)


def _dense(
    x: Tensor, values: Tensor, bias: Tensor | None, probe: Tensor | None, *index: Tensor
) -> Tensor:
    """Scatter into scratch, then torch's own dense kernels in the dtype of ``x``."""
    crow, col, *_ = index
    weight = to_dense(values, crow, col, x.shape[-1])
    if probe is not None:
        weight = weight + probe
    return F.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))


def _check(
    x: Tensor, values: Tensor, bias: Tensor | None, probe: Tensor | None, *index: Tensor
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
    if probe is not None or not fits_on_cpu(x, values, bias, index, rows):
        named = dict(zip(CsrIndex._fields, index, strict=True))
        check_operands(x, values, bias, probe, (rows, cols), named)


def _fake(
    x: Tensor, values: Tensor, bias: Tensor | None, probe: Tensor | None, *index: Tensor
) -> Tensor:
    return x.new_empty(*x.shape[:-1], index[0].shape[0] - 1)


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
        dvalues = gather(dense_grad, index[0], index[1])
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
    crow, col, *_, output_mask = rest
    weight = to_dense_op.reference(values, crow, col, x.shape[-1])
    flat_grad = as_rows(grad).to(values.dtype)
    flat_x = as_rows(x).to(values.dtype)
    empty = values.new_empty(0)
    dx = (flat_grad @ weight).to(x.dtype).view(x.shape) if output_mask[0] else x.new_empty(0)
    dvalues = gather_op.reference(flat_grad.t() @ flat_x, crow, col) if output_mask[1] else empty
    dbias = flat_grad.sum(0) if output_mask[2] else values.new_empty(0)
    return dx, dvalues, dbias


def _check_backward(grad: Tensor, x: Tensor, values: Tensor, *rest: Any) -> None:
    *index, output_mask = rest
    _check(x, values, None, None, *index)
    check_shape(grad, "grad", (*x.shape[:-1], index[0].shape[0] - 1))
    check_dtype(grad, "grad", (x.dtype,))
    if len(output_mask) != 3:
        raise ValueError(f"Expected output_mask to have 3 entries. Got {len(output_mask)}.")


def _fake_backward(
    grad: Tensor, x: Tensor, values: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    *index, output_mask = rest
    return (
        torch.empty_like(x, memory_format=torch.contiguous_format)
        if output_mask[0]
        else x.new_empty(0),
        torch.empty_like(values) if output_mask[1] else values.new_empty(0),
        values.new_empty(index[0].shape[0] - 1) if output_mask[2] else values.new_empty(0),
    )


def _supports_panel(*args: Any) -> str | None:
    if not native.loaded:
        return f"the native library is not loaded: {native.reason}"
    values = args[1] if args[1].ndim == 1 else args[2]
    if values.device.type != "cpu":
        return f"it runs on the CPU. Got {values.device}."
    return None


def _select(x: Tensor, *rest: Any) -> str:
    return "panel" if native.loaded and x.device.type == "cpu" else "reference"


def _samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    value_dtype = dtype if dtype in VALUE_DTYPES else torch.float32
    generator = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    def arguments(mask: Tensor, *batch: int, bias: bool = True) -> tuple[Any, ...]:
        index = index_from_mask(mask.to(device))
        return (
            randn(*batch, mask.shape[1]).to(device, dtype),
            randn(index.nnz).to(device, value_dtype),
            randn(mask.shape[0]).to(device, value_dtype) if bias else None,
            None,
            *index,
        )

    for name, mask in matrices():
        yield Sample(arguments(mask, 5), name, small=mask.numel() < 100)
    masks = dict(matrices())
    for batch in (0, 1, 16, 17, 33, 64, 65, 130):
        yield Sample(arguments(masks["typical"], batch), f"batch_{batch}")
    for name in ("off_tiles", "one_row", "empty", "no_rows", "no_columns"):
        yield Sample(arguments(masks[name], 1), f"{name}_batch_1")
    for batch in (7, 100):
        yield Sample(arguments(masks["off_tiles"], batch), f"off_tiles_batch_{batch}")
    yield Sample(arguments(masks["off_tiles"], 3, 7), "leading_dimensions")
    yield Sample(arguments(masks["typical"]), "one_vector")
    yield Sample(arguments(masks["typical"], 9, bias=False), "no_bias")
    x, *rest = arguments(masks["typical"], 12)
    yield Sample((x[::2], *rest), "strided_rows")
    yield Sample((x.t().contiguous().t(), *rest), "strided_columns")
    yield Sample((x[1:].reshape(-1)[3:][: 10 * 160].view(10, 160), *rest), "offset")
    x, values, bias, _, *index = arguments(masks["tiny"], 6)
    probe = torch.zeros((), device=device, dtype=value_dtype).expand(masks["tiny"].shape)
    yield Sample((x, values, bias, probe, *index), "probe", small=True, promise=True)


def _backward_samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    for sample in _samples(device, dtype):
        x, values, bias, _, *index = sample.args
        rows = index[0].shape[0] - 1
        grad = torch.linspace(-1, 1, math.prod(x.shape[:-1]) * rows, device=device)
        grad = grad.sin().view(*x.shape[:-1], rows).to(dtype)
        mask = [True, True, bias is not None]
        yield Sample((grad, x, values, *index, mask), sample.id, small=sample.small)
        if sample.id == "typical":
            for i in range(3):
                only = [i == j for j in range(3)]
                yield Sample((grad, x, values, *index, only), f"only_{i}")
            strided = grad.t().contiguous().t()
            yield Sample((strided, x, values, *index, mask), "strided_grad")
            expanded = grad[:1].expand(grad.shape)
            yield Sample((expanded, x, values, *index, mask), "expanded_grad")


def _arguments() -> tuple[Any, ...]:
    index = index_from_mask(torch.eye(3, dtype=torch.bool))
    return torch.zeros(2, 3), torch.zeros(3), torch.zeros(3), None, *index


def _errors() -> Iterator[tuple[tuple[Any, ...], type[Exception], str]]:
    x, values, bias, probe, *index = _arguments()
    yield (None, values, bias, probe, *index), TypeError, "Expected x to be a tensor"
    yield (x[:, :2], values, bias, probe, *index), ValueError, "Expected x to have 3 features"
    yield (x.long(), values, bias, probe, *index), TypeError, "Expected x to have dtype"
    yield (
        (x.double(), values, bias, probe, *index),
        TypeError,
        "Expected x and values to be float64",
    )
    yield (x, values.half(), bias, probe, *index), TypeError, "Expected values to have dtype"
    yield (x, values[:2], bias, probe, *index), ValueError, "Expected values to have shape"
    yield (x, values, bias[:2], probe, *index), ValueError, "Expected bias to have shape"
    yield (x, values, bias.double(), probe, *index), TypeError, "Expected bias to have dtype"
    yield (x, values, bias, torch.zeros(3), *index), ValueError, "Expected probe to have shape"
    wrong = [index[0], index[1].long(), *index[2:]]
    yield (x, values, bias, probe, *wrong), TypeError, "Expected col to have dtype torch.int32"
    short = [*index[:5], index[5][:1], index[6]]
    yield (x, values, bias, probe, *short), ValueError, "Expected col, col_t and perm to have 3"
    meta = x.to("meta")
    yield (meta, values, bias, probe, *index), ValueError, "Expected x to be on cpu like values"


def _backward_errors() -> Iterator[tuple[tuple[Any, ...], type[Exception], str]]:
    x, values, _, _, *index = _arguments()
    grad, mask = torch.zeros(2, 3), [True, True, True]
    yield (grad[:1], x, values, *index, mask), ValueError, "Expected grad to have shape"
    yield (grad.double(), x, values, *index, mask), TypeError, "Expected grad to have dtype"
    yield (grad, x, values, *index, [True]), ValueError, "Expected output_mask to have 3 entries"


def _bytes(x: Tensor, index: tuple[Tensor, ...]) -> tuple[int, int, int]:
    batch = math.prod(x.shape[:-1])
    rows = index[0].shape[0] - 1
    return x.numel() * x.element_size(), batch * rows * x.element_size(), 4 * index[1].numel()


def _cost(
    x: Tensor, values: Tensor, bias: Tensor | None, probe: Tensor | None, *index: Tensor
) -> Cost:
    x_bytes, y_bytes, col_bytes = _bytes(x, index)
    flops = 2 * values.numel() * math.prod(x.shape[:-1])
    return Cost(flops, x_bytes + col_bytes + values.numel() * values.element_size(), y_bytes)


def _backward_cost(grad: Tensor, x: Tensor, values: Tensor, *rest: Any) -> Cost:
    *index, mask = rest
    x_bytes, y_bytes, col_bytes = _bytes(x, tuple(index))
    value_bytes = values.numel() * values.element_size()
    products = int(mask[0]) + int(mask[1])
    flops = 2 * products * values.numel() * math.prod(x.shape[:-1])
    written = x_bytes * mask[0] + value_bytes * mask[1]
    return Cost(flops, x_bytes + y_bytes + products * col_bytes + value_bytes, written)


linear_backward_op = define_op(
    f"csr_linear_backward(Tensor grad, Tensor x, Tensor values, {_INDEX}, bool[3] output_mask, *, "
    "str variant='auto') -> (Tensor, Tensor, Tensor)",
    reference=_backward_reference,
    check=_check_backward,
    fake=_fake_backward,
    setup=None,
    backward="second derivatives are not computed; use sparsekern.densify(model) for them.",
    variants=(Variant("panel", _supports_panel),),
    select=_select,
    samples=_backward_samples,
    errors=_backward_errors,
    cost=_backward_cost,
)

linear_op = define_op(
    f"csr_linear(Tensor x, Tensor values, Tensor? bias, Tensor? probe, {_INDEX}, *, "
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
    samples=_samples,
    errors=_errors,
    cost=_cost,
)


def linear(
    x: Tensor,
    values: Tensor,
    index: CsrIndex,
    bias: Tensor | None = None,
    *,
    probe: Tensor | None = None,
    variant: str = "auto",
) -> Tensor:
    """``y = x W^T + bias`` with ``W[r, col[j]] = values[j]`` for the entries ``j`` of row ``r``.

    Args:
        x: ``[..., I]`` float32, float64, bfloat16 or float16, any strides.
        values: ``[nnz]`` float32 (float64 with a float64 ``x``) in row-major order of the mask;
            16-bit values are widened first.
        index: of the ``[O, I]`` matrix, from :func:`build_index`.
        bias: ``[O]``, or None.
        probe: ``[O, I]`` zeros (stride 0) whose gradient is the dense gradient of ``W``, or None.
        variant: "auto", or one of: "panel" (native CPU), "dense" (scatter into scratch and torch's
            dense kernels), "reference".

    Returns:
        ``[..., O]`` of the dtype of ``x``, accumulated in the dtype of ``values``.

    Raises:
        TypeError, ValueError: shapes, dtypes or devices that do not fit; an unknown variant.
        NotImplementedError: a variant that cannot run here, with the reason; second derivatives.

    Gradients: of ``x``, ``values`` (float32 for 16-bit ``x``), ``bias`` and ``probe``.
    NaN and infinity travel along kept weights only; dense has NaN * 0 = NaN for the others too.
    Deterministic: "panel" gives the same bits for any number of threads.
    Cost: ``2 B nnz`` flops forward, ``4 B nnz`` backward; reads ``x``, ``values`` and ``col``.
    Reference: register-blocked sparse x dense as in docs/cpu_kernels.md.
    """
    if values.dtype in (torch.bfloat16, torch.float16):
        values = values.float()
    if bias is not None and bias.dtype != values.dtype:
        bias = bias.to(values.dtype)
    return linear_op(x, values, bias, probe, *index, variant=variant)


__all__ = ["CsrIndex", "build_index", "linear", "linear_backward_op", "linear_op"]
