"""``condensed_linear``: a linear layer with as many weights in every row, for small batches."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sparsekern._checks import check_device, check_dtype, check_tensor
from sparsekern._extension import native
from sparsekern.ops._define import Cost, Sample, Variant, define_op
from sparsekern.ops.condensed.index import build_index
from sparsekern.ops.csr._checks import VALUE_DTYPES, check_numbers
from sparsekern.ops.csr.linear import linear_backward_op
from sparsekern.ops.mask.topk_rows import topk_rows

# (name, rows, cols, entries in each row)
MATRICES = (
    ("typical", 96, 160, 16),
    ("dense", 33, 40, 40),
    ("empty", 17, 9, 0),
    ("single", 70, 300, 1),
    ("three", 65, 31, 3),
    ("one_column", 129, 1, 1),
    ("one_output", 1, 77, 23),
    ("off_tiles", 131, 257, 77),
    ("long", 67, 300, 133),
    ("no_rows", 0, 5, 0),
    ("no_columns", 5, 0, 0),
    ("tiny", 3, 4, 2),
)


def _reference(x: Tensor, values: Tensor, bias: Tensor | None, col: Tensor, cols: int) -> Tensor:
    """Plain torch, accumulated in the dtype of ``values``."""
    rows = col.shape[0]
    weight = values.new_zeros(rows, cols).scatter(1, col.long(), values.view(col.shape))
    return F.linear(x.to(values.dtype), weight, bias).to(x.dtype)


def _check(x: Tensor, values: Tensor, bias: Tensor | None, col: Tensor, cols: int) -> None:
    for name, tensor in (("x", x), ("values", values), ("col", col)):
        if not isinstance(tensor, Tensor):
            check_tensor(tensor, name)
    if x.dim() < 1 or x.size(-1) != cols:
        raise ValueError(
            f"Expected x to have {cols} features in its last dimension. Got shape {tuple(x.shape)}."
        )
    check_tensor(col, "col", ndim=2)
    check_dtype(col, "col", (torch.int32,))
    check_device(col, "col", values.device, "values")
    check_numbers(x, values, bias, col.shape[0], (col.numel(),))


def _setup(ctx: Any, inputs: Any, output: Any) -> None:
    x, values, _, col, ctx.cols = inputs
    ctx.save_for_backward(x, values, col)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, values, col = ctx.saved_tensors
    index = build_index(col, ctx.cols)
    mask = [bool(needed) for needed in ctx.needs_input_grad[:3]]
    gradients = linear_backward_op.without_gradient(
        grad, x, values, None, *index, mask, variant="auto"
    )
    wanted = [each if needed else None for each, needed in zip(gradients, mask, strict=True)]
    return *wanted, None, None


def _supports_rows(x: Tensor, *rest: Any) -> str | None:
    if not native.loaded:
        return f"the native library is not loaded: {native.reason}"
    if x.device.type != "cpu":
        return f"it runs on the CPU. Got {x.device}."
    return None


def _samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    value_dtype = dtype if dtype in VALUE_DTYPES else torch.float32
    generator = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    def arguments(
        rows: int, cols: int, k: int, *batch: int, bias: bool = True
    ) -> tuple[Tensor | int | None, ...]:
        kept = topk_rows(torch.rand(rows, cols, generator=generator), k)
        return (
            randn(*batch, cols).to(device, dtype),
            randn(rows * k).to(device, value_dtype),
            randn(rows).to(device, value_dtype) if bias else None,
            kept.nonzero()[:, 1].view(rows, k).to(device, torch.int32),
            cols,
        )

    for name, *matrix in MATRICES:
        small = math.prod(matrix[:2]) < 100
        for batch in (1, 5):
            yield Sample(arguments(*matrix, batch), f"{name}_{batch}", small=small)
    for batch in (0, 2, 4, 8, 9, 15, 16, 17, 37):
        yield Sample(arguments(96, 160, 16, batch), f"batch_{batch}")
    for k in (77, 127, 128, 201):
        for batch in (4, 8, 16):
            yield Sample(arguments(131, 257, k, batch), f"fan_in_{k}_{batch}")
    yield Sample(arguments(96, 160, 16, 3, 2), "leading_dimensions")
    yield Sample(arguments(96, 160, 16), "one_vector")
    for batch in (1, 3, 9):
        yield Sample(arguments(96, 160, 16, batch, bias=False), f"no_bias_{batch}")
    x, *rest = arguments(96, 160, 16, 12)
    assert isinstance(x, Tensor)
    yield Sample((x[::2], *rest), "strided_rows")
    yield Sample((x[3:4], *rest), "one_of_many_rows")
    yield Sample((x.t().contiguous().t(), *rest), "strided_columns")
    yield Sample((x[1:].reshape(-1)[3:][: 10 * 160].view(10, 160), *rest), "offset")


def _errors() -> Iterator[tuple[tuple[Any, ...], type[Exception], str]]:
    x, values, bias = torch.zeros(2, 3), torch.zeros(8), torch.zeros(4)
    col = torch.tensor([[0, 2]] * 4, dtype=torch.int32)
    yield (None, values, bias, col, 3), TypeError, "Expected x to be a tensor"
    yield (x, values, bias, [0], 3), TypeError, "Expected col to be a tensor. Got list"
    yield (x[:, :2], values, bias, col, 3), ValueError, "Expected x to have 3 features"
    yield (x.long(), values, bias, col, 3), TypeError, "Expected x to have dtype"
    sentence = "Expected x and values to be float64"
    yield (x.double(), values, bias, col, 3), TypeError, sentence
    yield (x, values[:7], bias, col, 3), ValueError, "Expected values to have shape (8,)"
    yield (x, values, bias[:2], col, 3), ValueError, "Expected bias to have shape (4,)"
    yield (x, values, bias.double(), col, 3), TypeError, "Expected bias to have dtype"
    yield (x, values, bias, col.long(), 3), TypeError, "Expected col to have dtype torch.int32"
    yield (x, values, bias, col[0], 3), ValueError, "Expected col to have 2 dimensions"
    yield (x, values, bias, col.to("meta"), 3), ValueError, "Expected col to be on cpu like values"


def _cost(x: Tensor, values: Tensor, bias: Tensor | None, col: Tensor, cols: int) -> Cost:
    batch = math.prod(x.shape[:-1])
    written = batch * col.shape[0] * x.element_size()
    return Cost(2 * values.numel() * batch, x.nbytes + values.nbytes + col.nbytes, written)


linear_op = define_op(
    "condensed_linear(Tensor x, Tensor values, Tensor? bias, Tensor col, int cols, *, "
    "str variant='auto') -> Tensor",
    reference=_reference,
    check=_check,
    fake=lambda x, values, bias, col, cols: x.new_empty(*x.shape[:-1], col.shape[0]),
    setup=_setup,
    backward=_backward,
    variants=(Variant("rows", _supports_rows),),
    select=lambda x, *rest: "rows" if native.loaded and x.device.type == "cpu" else "reference",
    samples=_samples,
    errors=_errors,
    cost=_cost,
)


def linear(
    x: Tensor,
    values: Tensor,
    col: Tensor,
    in_features: int,
    bias: Tensor | None = None,
    *,
    variant: str = "auto",
) -> Tensor:
    """``y = x W^T + bias`` with ``W[r, col[r, j]] = values[r k + j]`` for ``j < k``.

    Made for inference with few rows of ``x``, at most 16; for more, and for training,
    :func:`sparsekern.ops.csr.linear` with :func:`build_index` of ``col`` is faster.

    Args:
        x: ``[..., I]`` float32, float64, bfloat16 or float16, any strides.
        values: ``[O k]`` float32 (float64 with a float64 ``x``) in row-major order of the mask;
            16-bit values are widened first.
        col: int32 ``[O, k]``, rising in each row, contiguous.
        in_features: ``I``.
        bias: ``[O]``, or None.
        variant: "auto", or one of: "rows" (native CPU), "reference".

    Returns:
        ``[..., O]`` of the dtype of ``x``, accumulated in the dtype of ``values``.

    Raises:
        TypeError, ValueError: shapes, dtypes or devices that do not fit; an unknown variant.
        NotImplementedError: a variant that cannot run here, with the reason; second derivatives.

    Gradients: of ``x``, ``values`` (float32 for 16-bit ``x``) and ``bias``; each backward pass
    builds csr's index anew.
    NaN and infinity travel along kept weights only; dense has NaN * 0 = NaN for the others too.
    Deterministic: "rows" gives the same bits for any number of threads.
    Cost: ``2 B O k`` flops forward, ``4 B O k`` backward and O(O k + I) for the index; reads ``x``,
    ``values`` and ``col``.
    Reference: Lasby et al., Dynamic Sparse Training with Structured Sparsity, 2024, "condensed"
    matrices.
    """
    if values.dtype in (torch.bfloat16, torch.float16):
        values = values.float()
    if bias is not None and bias.dtype != values.dtype:
        bias = bias.to(values.dtype)
    return linear_op(x, values, bias, col, in_features, variant=variant)
