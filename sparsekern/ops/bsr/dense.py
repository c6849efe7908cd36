"""``bsr_to_dense`` and ``bsr_gather``: each is the other's inverse and gradient."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from sparsekern._checks import check_device, check_shape, check_size, check_tensor
from sparsekern.ops._define import Cost, Sample, define_op
from sparsekern.ops.bsr._samples import matrices
from sparsekern.ops.bsr.index import split
from sparsekern.ops.csr._checks import check_rows
from sparsekern.ops.csr._rows import row_of
from sparsekern.ops.csr.from_mask import from_mask


def _to_dense_reference(values: Tensor, crow: Tensor, col: Tensor, block_columns: int) -> Tensor:
    blocks, height, width = values.shape
    rows = crow.shape[0] - 1
    place = row_of(crow, blocks) * block_columns + col.long()
    grid = values.new_zeros(rows * block_columns, height, width).index_copy(0, place, values)
    grid = grid.view(rows, block_columns, height, width).permute(0, 2, 1, 3)
    return grid.reshape(rows * height, block_columns * width)


def _gather_reference(dense: Tensor, crow: Tensor, col: Tensor, height: int, width: int) -> Tensor:
    return split(dense, (height, width))[row_of(crow, col.shape[0]), col.long()]


def _check_to_dense(values: Tensor, crow: Tensor, col: Tensor, block_columns: int) -> None:
    check_rows(crow, col)
    check_tensor(values, "values", ndim=3)
    check_shape(values, "values", (col.shape[0], *values.shape[1:]))
    check_device(values, "values", col.device, "col")
    check_size(block_columns, "block_columns")


def _check_gather(dense: Tensor, crow: Tensor, col: Tensor, height: int, width: int) -> None:
    check_rows(crow, col)
    check_tensor(dense, "dense", ndim=2)
    for name, side in (("height", height), ("width", width)):
        if side < 1:
            raise ValueError(f"Expected {name} to be at least 1. Got {side}.")
    check_shape(dense, "dense", ((crow.shape[0] - 1) * height, dense.shape[1]))
    split(dense, (height, width))
    check_device(dense, "dense", col.device, "col")


def _fake_to_dense(values: Tensor, crow: Tensor, col: Tensor, block_columns: int) -> Tensor:
    _, height, width = values.shape
    return values.new_empty((crow.shape[0] - 1) * height, block_columns * width)


def _fake_gather(dense: Tensor, crow: Tensor, col: Tensor, height: int, width: int) -> Tensor:
    return dense.new_empty(col.shape[0], height, width)


def _setup_to_dense(ctx: Any, inputs: Any, output: Any) -> None:
    values, crow, col, _ = inputs
    ctx.save_for_backward(crow, col)
    ctx.block_shape = values.shape[1:]


def _setup_gather(ctx: Any, inputs: Any, output: Any) -> None:
    dense, crow, col, _, width = inputs
    ctx.save_for_backward(crow, col)
    ctx.block_columns = dense.shape[1] // width


def _backward_to_dense(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
    crow, col = ctx.saved_tensors
    return gather(grad, crow, col, ctx.block_shape), None, None, None


def _backward_gather(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
    crow, col = ctx.saved_tensors
    return to_dense(grad, crow, col, ctx.block_columns), None, None, None, None


def _samples_to_dense(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    for name, kept, block in matrices():
        crow, col = from_mask(kept.to(device), int(kept.sum()))
        numel = col.shape[0] * block[0] * block[1]
        values = torch.linspace(-1, 1, numel, device=device).to(dtype).view(-1, *block)
        yield Sample((values, crow, col, kept.shape[1]), name, small=name == "tiny")


def _samples_gather(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    for name, kept, block in matrices():
        crow, col = from_mask(kept.to(device), int(kept.sum()))
        rows, cols = kept.shape[0] * block[0], kept.shape[1] * block[1]
        dense = torch.linspace(-1, 1, rows * cols, device=device).view(rows, cols).to(dtype)
        yield Sample((dense, crow, col, *block), name, small=name == "tiny")
        if name == "typical":
            yield Sample((dense.t().contiguous().t(), crow, col, *block), "strided")


def _errors_to_dense() -> Iterator[tuple[tuple[Any, ...], type[Exception], str]]:
    crow, col = from_mask(torch.eye(3, dtype=torch.bool), 3)
    yield (torch.zeros(2, 4, 4), crow, col, 3), ValueError, "Expected values to have shape"
    yield (torch.zeros(3), crow, col, 3), ValueError, "Expected values to have 3 dimensions"
    yield (
        (torch.zeros(3, 2, 2), crow, col, -3),
        ValueError,
        "Expected block_columns to be at least 0. Got -3",
    )


def _errors_gather() -> Iterator[tuple[tuple[Any, ...], type[Exception], str]]:
    crow, col = from_mask(torch.eye(3, dtype=torch.bool), 3)
    yield (torch.zeros(5, 6), crow, col, 2, 2), ValueError, "Expected dense to have shape"
    yield (torch.zeros(6), crow, col, 2, 2), ValueError, "Expected dense to have 2 dimensions"
    yield (torch.zeros(6, 7), crow, col, 2, 2), ValueError, "Expected blocks of 2 x 2 to divide"
    yield (torch.zeros(6, 6), crow, col, 2, 0), ValueError, "Expected width to be at least 1"


def _cost_to_dense(values: Tensor, crow: Tensor, col: Tensor, block_columns: int) -> Cost:
    _, height, width = values.shape
    numel = (crow.shape[0] - 1) * height * block_columns * width
    return Cost(0, values.nbytes + 4 * (col.numel() + crow.numel()), values.element_size() * numel)


def _cost_gather(dense: Tensor, crow: Tensor, col: Tensor, height: int, width: int) -> Cost:
    moved = dense.element_size() * col.numel() * height * width
    return Cost(0, moved + 4 * (col.numel() + crow.numel()), moved)


to_dense_op = define_op(
    "bsr_to_dense(Tensor values, Tensor crow, Tensor col, SymInt block_columns) -> Tensor",
    reference=_to_dense_reference,
    check=_check_to_dense,
    fake=_fake_to_dense,
    setup=_setup_to_dense,
    backward=_backward_to_dense,
    samples=_samples_to_dense,
    errors=_errors_to_dense,
    cost=_cost_to_dense,
)

gather_op = define_op(
    "bsr_gather(Tensor dense, Tensor crow, Tensor col, int height, int width) -> Tensor",
    reference=_gather_reference,
    check=_check_gather,
    fake=_fake_gather,
    setup=_setup_gather,
    backward=_backward_gather,
    samples=_samples_gather,
    errors=_errors_gather,
    cost=_cost_gather,
)


def to_dense(values: Tensor, crow: Tensor, col: Tensor, block_columns: int) -> Tensor:
    """``dense[R h + r, col[j] w + c] = values[j, r, c]`` for the blocks ``j`` of row ``R`` of
    blocks, zero elsewhere.

    Args:
        values: ``[n, h, w]``, any dtype.
        crow: ``[O / h + 1]`` int32.
        col: ``[n]`` int32.
        block_columns: ``I / w``.

    Returns:
        ``[O, I]`` of the dtype of ``values``.

    Raises:
        TypeError, ValueError: shapes, index dtypes or devices that do not fit.

    Gradients: of ``values``, by :func:`gather`. Deterministic. Cost: two writes of the dense
    matrix.
    """
    return to_dense_op(values, crow, col, block_columns)


def gather(dense: Tensor, crow: Tensor, col: Tensor, block_shape: tuple[int, int]) -> Tensor:
    """``values[j, r, c] = dense[R h + r, col[j] w + c]`` for the blocks ``j`` of row ``R`` of
    blocks.

    Args:
        dense: ``[O, I]``, any dtype and strides.
        crow: ``[O / h + 1]`` int32.
        col: ``[n]`` int32.
        block_shape: ``(h, w)``.

    Returns:
        ``[n, h, w]`` of the dtype of ``dense``.

    Raises:
        TypeError, ValueError: shapes, index dtypes or devices that do not fit.

    Gradients: of ``dense``, by :func:`to_dense`. Deterministic. Cost: one read of the kept blocks.
    """
    return gather_op(dense, crow, col, *block_shape)
