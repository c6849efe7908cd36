"""``csr_position_map``: where each entry of a new index was in the old one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from sparsekern._checks import check_shape
from sparsekern.kernels.launch import Launcher
from sparsekern.ops._define import Cost, Sample, define_op
from sparsekern.ops.csr._checks import check_rows
from sparsekern.ops.csr._rows import row_of
from sparsekern.ops.csr._samples import matrices
from sparsekern.ops.csr.from_mask import from_mask


def _keys(crow: Tensor, col: Tensor) -> Tensor:
    row = row_of(crow, col.shape[0])
    return row * 2**31 + col.long()


def _reference(crow_old: Tensor, col_old: Tensor, crow: Tensor, col: Tensor) -> Tensor:
    old, new = _keys(crow_old, col_old), _keys(crow, col)
    if old.numel() == 0:
        return torch.full_like(col, -1)
    position = torch.searchsorted(old, new)
    found = old.index_select(0, position.clamp(max=old.numel() - 1)) == new
    return torch.where(found, position, -1).to(torch.int32)


def _check(crow_old: Tensor, col_old: Tensor, crow: Tensor, col: Tensor) -> None:
    check_rows(crow, col)
    check_rows(crow_old, col_old)
    check_shape(crow_old, "crow_old", tuple(crow.shape))


def _fake(crow_old: Tensor, col_old: Tensor, crow: Tensor, col: Tensor) -> Tensor:
    return torch.empty_like(col)


def _samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    for name, mask in matrices():
        other = mask.flip(1)
        old = from_mask(mask.to(device), int(mask.sum()))
        new = from_mask(other.to(device), int(other.sum()))
        yield Sample((*old, *new), name, small=mask.numel() < 100)
    old = from_mask(torch.ones(2, 3, dtype=torch.bool, device=device), 6)
    new = from_mask(torch.zeros(2, 3, dtype=torch.bool, device=device), 0)
    yield Sample((*old, *new), "to_nothing", small=True)
    yield Sample((*new, *old), "from_nothing", small=True)


def _errors() -> Iterator[tuple[tuple[Any, ...], type[Exception], str]]:
    crow, col = from_mask(torch.eye(3, dtype=torch.bool), 3)
    yield (crow[:2], col, crow, col), ValueError, "Expected crow_old to have shape"
    yield (crow, col.float(), crow, col), TypeError, "Expected col to have dtype torch.int32"


def _cost(crow_old: Tensor, col_old: Tensor, crow: Tensor, col: Tensor) -> Cost:
    read = crow_old.numel() + col_old.numel() + crow.numel() + col.numel()
    return Cost(flops=0, bytes_read=4 * read, bytes_written=4 * col.numel())


position_map_op = define_op(
    "csr_position_map(Tensor crow_old, Tensor col_old, Tensor crow, Tensor col) -> Tensor",
    reference=_reference,
    check=_check,
    fake=_fake,
    setup=None,
    backward="an index has no gradient.",
    samples=_samples,
    errors=_errors,
    cost=_cost,
    triton=Launcher("csr.index", "position_map"),
)


def position_map(crow_old: Tensor, col_old: Tensor, crow: Tensor, col: Tensor) -> Tensor:
    """``map[j]`` = position in the old index of the entry at position ``j`` of the new, else -1.

    Args:
        crow_old, crow: ``[O + 1]`` int32.
        col_old: ``[nnz_old]`` int32, ascending in every row.
        col: ``[nnz]`` int32, ascending in every row.

    Returns:
        ``[nnz]`` int32. Per-weight state moves as ``where(map >= 0, state[map], 0)``.

    Raises:
        TypeError, ValueError: another dtype, number of rows or device.

    Gradients: none. Deterministic. Cost: one merge of both column lists.
    """
    return position_map_op(crow_old, col_old, crow, col)
