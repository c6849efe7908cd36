"""``csr_to_dense`` and ``csr_gather``: each is the other's inverse and gradient."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from sparsekern._checks import check_device, check_shape, check_size, check_tensor
from sparsekern.kernels.launch import Launcher
from sparsekern.ops._define import Cost, Sample, define_op
from sparsekern.ops.csr._checks import check_rows
from sparsekern.ops.csr._rows import row_of
from sparsekern.ops.csr._samples import matrices
from sparsekern.ops.csr.from_mask import from_mask


def _flat(crow: Tensor, col: Tensor, cols: int) -> Tensor:
    row = row_of(crow, col.shape[0])
    return row * cols + col.long()


def _to_dense_reference(values: Tensor, crow: Tensor, col: Tensor, cols: int) -> Tensor:
    rows = crow.shape[0] - 1
    flat = values.new_zeros(rows * cols).index_copy(0, _flat(crow, col, cols), values)
    return flat.view(rows, cols)


def _gather_reference(dense: Tensor, crow: Tensor, col: Tensor) -> Tensor:
    return dense.flatten()[_flat(crow, col, dense.shape[1])]


def _check_to_dense(values: Tensor, crow: Tensor, col: Tensor, cols: int) -> None:
    check_rows(crow, col)
    check_tensor(values, "values", ndim=1)
    check_shape(values, "values", tuple(col.shape))
    check_device(values, "values", col.device, "col")
    check_size(cols, "cols")


def _check_gather(dense: Tensor, crow: Tensor, col: Tensor) -> None:
    check_rows(crow, col)
    check_tensor(dense, "dense", ndim=2)
    check_shape(dense, "dense", (crow.shape[0] - 1, dense.shape[1]))
    check_device(dense, "dense", col.device, "col")


def _fake_to_dense(values: Tensor, crow: Tensor, col: Tensor, cols: int) -> Tensor:
    return values.new_empty(crow.shape[0] - 1, cols)


def _fake_gather(dense: Tensor, crow: Tensor, col: Tensor) -> Tensor:
    return dense.new_empty(col.shape[0])


def _setup_to_dense(ctx: Any, inputs: Any, output: Any) -> None:
    _, crow, col, _ = inputs
    ctx.save_for_backward(crow, col)


def _setup_gather(ctx: Any, inputs: Any, output: Any) -> None:
    dense, crow, col = inputs
    ctx.save_for_backward(crow, col)
    ctx.cols = dense.shape[1]


def _backward_to_dense(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
    crow, col = ctx.saved_tensors
    return gather(grad, crow, col), None, None, None


def _backward_gather(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    crow, col = ctx.saved_tensors
    return to_dense(grad, crow, col, ctx.cols), None, None


def _samples_to_dense(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    for name, mask in matrices():
        crow, col = from_mask(mask.to(device), int(mask.sum()))
        values = torch.linspace(-1, 1, col.shape[0], device=device).to(dtype)
        yield Sample((values, crow, col, mask.shape[1]), name, small=mask.numel() < 100)


def _samples_gather(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    for name, mask in matrices():
        crow, col = from_mask(mask.to(device), int(mask.sum()))
        dense = torch.linspace(-1, 1, mask.numel(), device=device).view(mask.shape).to(dtype)
        yield Sample((dense, crow, col), name, small=mask.numel() < 100)
        if name == "typical":
            yield Sample((dense.t().contiguous().t(), crow, col), "strided")


def _errors_to_dense() -> Iterator[tuple[tuple[Any, ...], type[Exception], str]]:
    crow, col = from_mask(torch.eye(3, dtype=torch.bool), 3)
    yield (torch.zeros(2), crow, col, 3), ValueError, "Expected values to have shape"
    yield (torch.zeros(3, 1), crow, col, 3), ValueError, "Expected values to have 1 dimensions"
    yield (torch.zeros(3), crow, col, -3), ValueError, "Expected cols to be at least 0. Got -3"
    yield (torch.zeros(3), crow, col, 3.0), TypeError, "Expected cols to be an integer. Got 3.0"


def _errors_gather() -> Iterator[tuple[tuple[Any, ...], type[Exception], str]]:
    crow, col = from_mask(torch.eye(3, dtype=torch.bool), 3)
    yield (torch.zeros(4, 3), crow, col), ValueError, "Expected dense to have shape"
    yield (torch.zeros(3), crow, col), ValueError, "Expected dense to have 2 dimensions"


def _cost_to_dense(values: Tensor, crow: Tensor, col: Tensor, cols: int) -> Cost:
    size = values.element_size()
    numel = (crow.shape[0] - 1) * cols
    return Cost(0, (size + 4) * col.numel() + 4 * crow.numel(), size * numel)


def _cost_gather(dense: Tensor, crow: Tensor, col: Tensor) -> Cost:
    size = dense.element_size()
    return Cost(0, (size + 4) * col.numel() + 4 * crow.numel(), size * col.numel())


def _limits(numbers: Tensor, *rest: Any) -> str | None:
    if numbers.element_size() > 8:
        return f"the kernels move at most 8 bytes. Got {numbers.dtype}."
    return None


to_dense_op = define_op(
    "csr_to_dense(Tensor values, Tensor crow, Tensor col, SymInt cols) -> Tensor",
    reference=_to_dense_reference,
    check=_check_to_dense,
    fake=_fake_to_dense,
    setup=_setup_to_dense,
    backward=_backward_to_dense,
    samples=_samples_to_dense,
    errors=_errors_to_dense,
    cost=_cost_to_dense,
    triton=Launcher("csr.dense", "to_dense", _limits),
)

gather_op = define_op(
    "csr_gather(Tensor dense, Tensor crow, Tensor col) -> Tensor",
    reference=_gather_reference,
    check=_check_gather,
    fake=_fake_gather,
    setup=_setup_gather,
    backward=_backward_gather,
    samples=_samples_gather,
    errors=_errors_gather,
    cost=_cost_gather,
    triton=Launcher("csr.dense", "gather", _limits),
)


def to_dense(values: Tensor, crow: Tensor, col: Tensor, cols: int) -> Tensor:
    """``dense[r, col[j]] = values[j]`` for the entries ``j`` of row ``r``, zero elsewhere.

    Args:
        values: ``[nnz]``, any dtype.
        crow: ``[O + 1]`` int32.
        col: ``[nnz]`` int32.
        cols: number of columns ``I``.

    Returns:
        ``[O, I]`` of the dtype of ``values``.

    Raises:
        TypeError, ValueError: shapes, index dtypes or devices that do not fit.

    Gradients: of ``values``, by :func:`gather`. Deterministic. Cost: one write of the dense matrix.
    """
    return to_dense_op(values, crow, col, cols)


def gather(dense: Tensor, crow: Tensor, col: Tensor) -> Tensor:
    """``values[j] = dense[r, col[j]]`` for the entries ``j`` of row ``r``.

    Args:
        dense: ``[O, I]``, any dtype and strides.
        crow: ``[O + 1]`` int32.
        col: ``[nnz]`` int32.

    Returns:
        ``[nnz]`` of the dtype of ``dense``.

    Raises:
        TypeError, ValueError: shapes, index dtypes or devices that do not fit.

    Gradients: of ``dense``, by :func:`to_dense`. Deterministic. Cost: one read of the kept entries.
    """
    return gather_op(dense, crow, col)
