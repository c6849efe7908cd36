"""``bsr_linear``: a linear layer whose weight is stored as dense blocks in compressed rows."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sparsekern._checks import as_rows, check_dtype, check_shape, check_tensor
from sparsekern._extension import native
from sparsekern.kernels.launch import Launcher
from sparsekern.ops._define import Cost, Sample, Variant, define_op
from sparsekern.ops.bsr._samples import matrices
from sparsekern.ops.bsr._variants import choose_on_cuda, triton_limits
from sparsekern.ops.bsr.dense import gather, gather_op, to_dense, to_dense_op
from sparsekern.ops.bsr.index import BsrIndex, index_from_mask
from sparsekern.ops.csr._checks import VALUE_DTYPES, check_operands

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


def _samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    value_dtype = dtype if dtype in VALUE_DTYPES else torch.float32
    generator = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    def arguments(
        kept: Tensor, block: tuple[int, int], *batch: int, bias: bool = True
    ) -> tuple[Any, ...]:
        index = index_from_mask(kept.to(device))
        return (
            randn(*batch, kept.shape[1] * block[1]).to(device, dtype),
            randn(index.blocks, *block).to(device, value_dtype),
            randn(kept.shape[0] * block[0]).to(device, value_dtype) if bias else None,
            None,
            *index,
        )

    named = {name: (kept, block) for name, kept, block in matrices()}
    for name, matrix in named.items():
        yield Sample(arguments(*matrix, 5), name, small=name == "tiny")
    for batch in (0, 1, 16, 17, 33, 64, 65, 130):
        yield Sample(arguments(*named["typical"], batch), f"batch_{batch}")
    for name in ("four", "eight", "flat", "thirty_two", "odd", "odd_large"):
        yield Sample(arguments(*named[name], 150), f"{name}_150")
    yield Sample(arguments(named["tall_blocks"][0][:1, :2], (16, 32), 1030), "long_batch")
    yield Sample(arguments(*named["odd"], 3, 7), "leading_dimensions")
    yield Sample(arguments(*named["typical"]), "one_vector")
    yield Sample(arguments(*named["typical"], 9, bias=False), "no_bias")
    x, *rest = arguments(*named["typical"], 12)
    yield Sample((x[::2], *rest), "strided_rows")
    yield Sample((x.t().contiguous().t(), *rest), "strided_columns")
    yield Sample((x[1:].reshape(-1)[3:][: 10 * 160].view(10, 160), *rest), "offset")
    x, values, bias, _, *index = arguments(*named["tiny"], 6)
    probe = torch.zeros((), device=device, dtype=value_dtype).expand(4, 6)
    yield Sample((x, values, bias, probe, *index), "probe", small=True, promise=True)


def _backward_samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    for sample in _samples(device, dtype):
        x, values, bias, _, *index = sample.args
        rows = _sizes(values, tuple(index))[0]
        shape = (*x.shape[:-1], rows)
        # NOTE: a sorted gradient would cancel in dbias, whose error would then say nothing.
        grad = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(device, dtype)
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
    return torch.zeros(2, 6), torch.zeros(3, 4, 2), torch.zeros(12), None, *index


def _errors() -> Iterator[tuple[tuple[Any, ...], type[Exception], str]]:
    x, values, bias, probe, *index = _arguments()
    yield (None, values, bias, probe, *index), TypeError, "Expected x to be a tensor"
    yield (x[:, :2], values, bias, probe, *index), ValueError, "Expected x to have 6 features"
    yield (x.long(), values, bias, probe, *index), TypeError, "Expected x to have dtype"
    yield (
        (x.double(), values, bias, probe, *index),
        TypeError,
        "Expected x and values to be float64",
    )
    yield (x, values[0], bias, probe, *index), ValueError, "Expected values to have 3 dimensions"
    yield (x, values.half(), bias, probe, *index), TypeError, "Expected values to have dtype"
    yield (x, values[:2], bias, probe, *index), ValueError, "Expected values to have shape"
    nothing = (x, values[:, :0], bias[:0], probe, *index)
    yield nothing, ValueError, "Expected values to have blocks with elements"
    yield (x, values, bias[:2], probe, *index), ValueError, "Expected bias to have shape"
    yield (x, values, bias.double(), probe, *index), TypeError, "Expected bias to have dtype"
    yield (x, values, bias, torch.zeros(3), *index), ValueError, "Expected probe to have shape"
    wrong = [index[0], index[1].long(), *index[2:]]
    yield (x, values, bias, probe, *wrong), TypeError, "Expected col to have dtype torch.int32"
    short = [*index[:4], index[4][:1]]
    yield (x, values, bias, probe, *short), ValueError, "Expected col, col_t and perm to have 3"
    meta = x.to("meta")
    yield (meta, values, bias, probe, *index), ValueError, "Expected x to be on cpu like values"


def _backward_errors() -> Iterator[tuple[tuple[Any, ...], type[Exception], str]]:
    x, values, _, _, *index = _arguments()
    grad, mask = torch.zeros(2, 12), [True, True, True]
    yield (grad[:1], x, values, *index, mask), ValueError, "Expected grad to have shape"
    yield (grad.double(), x, values, *index, mask), TypeError, "Expected grad to have dtype"
    yield (grad, x, values, *index, [True]), ValueError, "Expected output_mask to have 3 entries"


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
    samples=_backward_samples,
    errors=_backward_errors,
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
    samples=_samples,
    errors=_errors,
    cost=_cost,
    triton=_TRITON,
)


def linear(
    x: Tensor,
    values: Tensor,
    index: BsrIndex,
    bias: Tensor | None = None,
    *,
    probe: Tensor | None = None,
    variant: str = "auto",
) -> Tensor:
    """``y = x W^T + bias`` with ``W[R h + r, col[j] w + c] = values[j, r, c]`` for the blocks ``j``
    of row ``R`` of blocks.

    Args:
        x: ``[..., I]`` float32, float64, bfloat16 or float16, any strides.
        values: ``[n, h, w]`` float32 (float64 with a float64 ``x``), blocks in row-major order;
            16-bit values are widened first. Any ``h`` and ``w``; 8, 16, 32 and 64 are fastest.
        index: of the ``[O / h, I / w]`` matrix of blocks, from :func:`build_index`.
        bias: ``[O]``, or None.
        probe: ``[O, I]`` zeros (stride 0) whose gradient is the dense gradient of ``W``, or None.
        variant: "auto", or one of: "panel" (native CPU), "triton" (CUDA; sides that are multiples
            of 16; values that are rounded to the dtype of ``x`` first, as under autocast, and added
            up in float32), "dense" (scatter into scratch and torch's dense kernels), "reference".

    Returns:
        ``[..., O]`` of the dtype of ``x``, accumulated in the dtype of ``values``.

    Raises:
        TypeError, ValueError: shapes, dtypes or devices that do not fit; an unknown variant.
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
    return linear_op(x, values, bias, probe, *index, variant=variant)


__all__ = ["linear", "linear_backward_op", "linear_op"]
