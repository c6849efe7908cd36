"""``csr_panel_starts``: where the entries of each row begin in each panel of columns."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from sparsekern.kernels.csr.panels import FORMAT, PanelGeometry
from sparsekern.kernels.launch import Launcher
from sparsekern.ops._define import Cost, Sample, define_op
from sparsekern.ops.csr._rows import row_of
from sparsekern.ops.csr._samples import matrices
from sparsekern.ops.csr.from_mask import from_mask
from sparsekern.ops.csr.transpose import _check


def _reference(crow: Tensor, col: Tensor, cols: int) -> Tensor:
    g = PanelGeometry(crow.shape[0] - 1, cols, col.shape[0])
    keys = row_of(crow, g.nnz) * cols + col.long()  # rising: the place of an entry in the matrix
    rows = torch.arange(g.rows, device=col.device)
    borders = torch.arange(g.panels + 1, device=col.device) * g.panel
    wanted = rows * cols + borders.clamp(max=cols).unsqueeze(1)
    starts = torch.searchsorted(keys, wanted).flatten()
    sizes = [torch.full((1,), n, device=col.device) for n in (FORMAT, g.rows, g.cols, g.nnz)]
    return torch.cat([starts, *sizes]).to(torch.int32)


def _fake(crow: Tensor, col: Tensor, cols: int) -> Tensor:
    return col.new_empty(PanelGeometry(crow.shape[0] - 1, cols, col.shape[0]).numel)


def _samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    for name, mask in matrices():
        crow, col = from_mask(mask.to(device), int(mask.sum()))
        yield Sample((crow, col, mask.shape[1]), name, small=mask.numel() < 100)


def _errors() -> Iterator[tuple[tuple[Any, ...], type[Exception], str]]:
    crow, col = from_mask(torch.eye(3, dtype=torch.bool), 3)
    yield (crow, col.long(), 3), TypeError, "Expected col to have dtype torch.int32"
    yield (crow, col, 2**31), ValueError, "Expected cols to be at least 0 and below 2^31"


def _cost(crow: Tensor, col: Tensor, cols: int) -> Cost:
    g = PanelGeometry(crow.shape[0] - 1, cols, col.shape[0])
    return Cost(flops=0, bytes_read=4 * (g.nnz + g.rows), bytes_written=4 * g.numel)


panel_starts_op = define_op(
    "csr_panel_starts(Tensor crow, Tensor col, SymInt cols) -> Tensor",
    reference=_reference,
    check=_check,
    fake=_fake,
    setup=None,
    backward="an index has no gradient.",
    samples=_samples,
    errors=_errors,
    cost=_cost,
    triton=Launcher("csr.index", "panel_starts"),
)


def panel_starts(crow: Tensor, col: Tensor, cols: int) -> Tensor:
    """``starts[p][r]`` = first position in row ``r`` whose column is at least ``p * panel``.

    The CPU kernels walk a block of rows one panel of columns after the other, so that the packed
    activations of a panel stay in cache. A row's entries in a panel are contiguous in ``values``
    and ``col``: from ``starts[p][r]`` to ``starts[p + 1][r]``.

    Args:
        crow: ``[O + 1]`` int32.
        col: ``[nnz]`` int32, ascending in every row.
        cols: number of columns ``I``.

    Returns:
        int32 ``[(panels + 1) O + 4]``: the starts, then the sizes they belong to. The number of
        panels follows from ``O``, ``I`` and ``nnz`` alone.

    Raises:
        TypeError, ValueError: another dtype, number of dimensions or device.
        RuntimeError: row bounds or columns that are not those of a sorted matrix (native code).

    Gradients: none. Deterministic. Cost: one read of ``col``, one write of the starts.
    """
    return panel_starts_op(crow, col, cols)
