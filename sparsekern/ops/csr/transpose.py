"""``csr_transpose``: the same matrix by columns."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from sparsekern.ops._define import Cost, Sample, define_op
from sparsekern.ops.csr._checks import check_rows
from sparsekern.ops.csr._rows import row_of
from sparsekern.ops.csr._samples import matrices
from sparsekern.ops.csr.from_mask import from_mask


def _reference(
    crow: Tensor, col: Tensor, cols: int, taps: int = 1
) -> tuple[Tensor, Tensor, Tensor]:
    # Plain torch on a GPU too: its radix sort of 16-bit keys is two passes at copy bandwidth, and
    # nothing here waits for the device.
    channels = cols // taps
    keys = torch.int16 if channels < 2**15 else torch.int32
    channel, perm = torch.sort((col // taps).to(keys), stable=True)
    first = torch.arange(channels + 1, dtype=keys, device=col.device)
    place = (row_of(crow, col.shape[0]) * taps + col % taps).to(torch.int32)
    crow_t = torch.searchsorted(channel, first, out_int32=True)
    return crow_t, place.index_select(0, perm), perm.to(torch.int32)


def _check(crow: Tensor, col: Tensor, cols: int, taps: int = 1) -> None:
    check_rows(crow, col)
    if not isinstance(cols, torch.SymInt) and not 0 <= cols < 2**31:
        raise ValueError(f"Expected cols to be at least 0 and below 2^31. Got {cols}.")
    if not isinstance(cols, torch.SymInt) and (taps < 1 or cols % taps != 0):
        raise ValueError(f"Expected taps to divide {cols} columns. Got {taps}.")


def _fake(crow: Tensor, col: Tensor, cols: int, taps: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    return crow.new_empty(cols // taps + 1), torch.empty_like(col), torch.empty_like(col)


def _samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    for name, mask in matrices():
        crow, col = from_mask(mask.to(device), int(mask.sum()))
        yield Sample((crow, col, mask.shape[1]), name, small=mask.numel() < 100)
        for taps in (2, 9, 10):
            if mask.shape[1] % taps == 0:
                yield Sample((crow, col, mask.shape[1], taps), f"{name}_{taps}_taps")


def _errors() -> Iterator[tuple[tuple[Any, ...], type[Exception], str]]:
    crow, col = from_mask(torch.eye(3, dtype=torch.bool), 3)
    yield (crow.long(), col, 3), TypeError, "Expected crow to have dtype torch.int32"
    yield (crow, col[None], 3), ValueError, "Expected col to have 1 dimensions"
    yield (crow[:0], col, 3), ValueError, "Expected crow to have one element more"
    yield (crow, col, -1), ValueError, "Expected cols to be at least 0"
    yield (crow, col, 3, 2), ValueError, "Expected taps to divide 3 columns"
    yield (crow, col, 3, 0), ValueError, "Expected taps to divide 3 columns"


def _cost(crow: Tensor, col: Tensor, cols: int, taps: int = 1) -> Cost:
    nnz = col.shape[0]
    return Cost(
        flops=0,
        bytes_read=4 * (3 * nnz + crow.shape[0]),
        bytes_written=4 * (2 * nnz + cols // taps + 1),
    )


transpose_op = define_op(
    "csr_transpose(Tensor crow, Tensor col, SymInt cols, int taps=1) -> (Tensor, Tensor, Tensor)",
    reference=_reference,
    check=_check,
    fake=_fake,
    setup=None,
    backward="an index has no gradient.",
    samples=_samples,
    errors=_errors,
    cost=_cost,
)


def transpose(crow: Tensor, col: Tensor, cols: int, taps: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """The compressed columns of a CSR matrix, and where its values go: ``values_t = values[perm]``.

    The weight of a convolution has ``taps`` neighbouring columns for each input channel; they
    become one row, whose entry from row ``o`` and tap ``k`` has column ``o * taps + k``.

    Args:
        crow: ``[O + 1]`` int32.
        col: ``[nnz]`` int32, ascending in every row.
        cols: number of columns ``I``.
        taps: columns of one row of the result; divides ``cols``.

    Returns:
        ``crow_t`` ``[I / taps + 1]``, ``col_t`` ``[nnz]`` (ascending in every row of the result)
        and ``perm`` ``[nnz]``, int32.

    Raises:
        TypeError, ValueError: another dtype, number of dimensions or device.
        RuntimeError: row bounds or columns that are not those of a sorted matrix without repeated
            entries (native code).

    Gradients: none. Deterministic, for any number of threads.
    Cost: a counting sort, O(nnz + O + I).
    """
    return transpose_op(crow, col, cols, taps)
