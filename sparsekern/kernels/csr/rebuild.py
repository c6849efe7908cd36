"""``index = index of mask`` in place, and where each entry was before.

Thread mapping: those of index.py, once for the rows and once for the columns.
Tile: flat tiles of the mask, of its transpose, and of the entries.
Accumulation: int32 in a tile, int64 over all. Alignment: none asked for; addresses are int64.
Roofline: six passes over one byte a weight, one write of the index; no sort, the host never waits.
Contract: sparsekern/ops/csr/rebuild.py.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparsekern.kernels.csr.index import (
    FLAGS,
    WARPS,
    compress,
    fill_panel_starts,
    position_map,
    tile_starts,
    write_kernel,
)
from sparsekern.kernels.launch import debugging, launch
from sparsekern.kernels.mask.bits import unpack_bits

NUMBERS = 4096


@triton.jit
def adopt_kernel(p_from, p_to, p_total, numel, nnz, BLOCK: tl.constexpr):
    """Copies, unless the mask has another number of entries than the index."""
    first = tl.program_id(0).to(tl.int64) * BLOCK
    o_number = tl.arange(0, BLOCK)
    m_number = o_number < tl.where(tl.load(p_total) == nnz, numel - first, 0)
    number = tl.load(p_from + first + o_number, mask=m_number, other=0)
    tl.store(p_to + first + o_number, number, mask=m_number)


def rebuild(*args: Any) -> Tensor:
    """Launches ``csr_rebuild_``."""
    crow, col, starts, crow_t, col_t, perm, starts_t, mask, cols, taps = args
    rows, nnz = crow.numel() - 1, col.numel()
    if rows * cols == 0:
        return torch.empty_like(col)
    if mask.dtype == torch.uint8:
        mask = unpack_bits(mask, (rows, cols))
    flags = mask.contiguous().view(torch.uint8).view(rows, cols // taps, taps)
    new_crow, new_col = torch.empty_like(crow), torch.empty_like(col)
    before = tile_starts(flags.view(-1))
    total = before[-1:]
    if debugging() and int(total) != nnz:
        raise RuntimeError(f"Expected mask to have {nnz} True entries. Got {int(total)}.")
    compress(flags.view(-1), before, new_crow, new_col, cols)
    positions = position_map(crow, col, new_crow, new_col, total, cols)
    flags_t = flags.transpose(0, 1).contiguous().view(-1)
    before_t = tile_starts(flags_t)
    out = (crow_t, col_t, perm, new_crow, new_col)
    sizes = (flags.numel(), cols // taps, rows * taps, nnz, taps, cols.bit_length())
    grid = (before_t.numel() - 1,)
    how = {"BLOCK": FLAGS, "TRANSPOSED": True, "warps": WARPS, "stages": 1}
    launch(write_kernel, grid, flags_t, before_t, total, *out, *sizes, **how)
    for new, own in ((new_crow, crow), (new_col, col)):
        grid = (triton.cdiv(own.numel(), NUMBERS),)
        launch(adopt_kernel, grid, new, own, total, own.numel(), nnz, BLOCK=NUMBERS)
    if starts.numel() > 0:
        fill_panel_starts(crow, col, cols, starts, total)
        fill_panel_starts(crow_t, col_t, rows, starts_t, total)
    return positions
