"""Compressed rows of a mask, where entries were before, and where rows begin in each panel.

Formula: ``col`` = the True columns of each row, ascending; entry ``j`` has ``crow[r] <= j``.
Thread mapping: programs take BLOCK flags of the flat mask, BLOCK entries, or BLOCK panel starts.
Tile: flat, so that rows of any length load all programs alike; ranks are counts of tiles, summed.
Accumulation: int32 in a tile, int64 over all. Alignment: none asked for; addresses are int64.
Roofline: two reads of the mask, one write of the index; searches walk a row that is in L1 or L2.
Contract: sparsekern/ops/csr/from_mask.py, position_map.py, panel_starts.py.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparsekern.kernels.csr.panels import FORMAT, PanelGeometry
from sparsekern.kernels.launch import INTERPRETING, debugging, launch
from sparsekern.kernels.mask.order import scan

FLAGS = 16384 if INTERPRETING else 2048  # the interpreter pays by the program
ENTRIES = 4096 if INTERPRETING else 256
WARPS = 8


@triton.jit
def lower_bound(p_sorted, first, last, wanted, steps):
    """The first place in [first, last) whose number is at least ``wanted``, or ``last``.

    ``steps``: bits of the greatest distance.
    """
    for _ in range(steps):
        middle = first + (last - first) // 2
        inside = first < last
        below = tl.load(p_sorted + middle, mask=inside, other=0) < wanted
        first = tl.where(inside & below, middle + 1, first)
        last = tl.where(inside & (below == 0), middle, last)
    return first


@triton.jit
def find(p_crow, p_col, row, col, m_entry, nnz, steps):
    """Where (row, col) is among sorted rows, or -1. SAFETY: broken row bounds stay inside."""
    first = tl.load(p_crow + row, mask=m_entry, other=0)
    last = tl.load(p_crow + row + 1, mask=m_entry, other=0)
    last = tl.minimum(tl.maximum(last, 0), nnz)
    first = tl.maximum(first, 0)
    place = lower_bound(p_col, first, last, col, steps)
    m_there = m_entry & (place < last)
    there = tl.load(p_col + place, mask=m_there, other=-1)
    return tl.where(m_there & (there == col), place, -1)


@triton.jit
def count_kernel(p_mask, p_counts, numel, BLOCK: tl.constexpr):
    first = tl.program_id(0).to(tl.int64) * BLOCK
    o_flag = tl.arange(0, BLOCK)
    flag = tl.load(p_mask + first + o_flag, mask=o_flag < numel - first, other=0).to(tl.int32)
    tl.store(p_counts + tl.program_id(0), tl.sum(flag, axis=0))


@triton.jit(do_not_specialize=["steps"])
def write_kernel(
    p_mask,
    p_starts,
    p_total,
    p_crow,
    p_col,
    p_perm,
    p_crow_of,
    p_col_of,
    numel,
    rows,
    cols,
    nnz,
    taps,
    steps,
    BLOCK: tl.constexpr,
    TRANSPOSED: tl.constexpr,
):
    """Columns and row starts of a tile of flags.

    TRANSPOSED: the mask is that of the transpose, ``crow_of`` and ``col_of`` are the matrix, whose
    entries ``perm`` finds; nothing is written unless the mask has ``nnz`` entries.
    """
    i_tile = tl.program_id(0)
    total = tl.load(p_total)
    if (total == nnz) | (not TRANSPOSED):
        first = i_tile.to(tl.int64) * BLOCK
        row = first // cols
        o_flag = tl.arange(0, BLOCK)
        m_flag = o_flag < numel - first
        flag = tl.load(p_mask + first + o_flag, mask=m_flag, other=0).to(tl.int32)
        start = tl.load(p_starts + i_tile)
        place = tl.cumsum(flag, axis=0) - flag
        o_col = (first - row * cols).to(tl.int32) + o_flag
        o_row = o_col // cols
        o_col = o_col - o_row * cols
        m_col = (flag != 0) & (place < nnz - start)
        tl.store(p_col + start + place, o_col, mask=m_col)
        begins = tl.minimum(start + place, nnz).to(tl.int32)
        tl.store(p_crow + row + o_row, begins, mask=m_flag & (o_col == 0))
        if i_tile == 0:
            tl.store(p_crow + rows, tl.minimum(total, nnz).to(tl.int32))
        if TRANSPOSED:
            whole = (row.to(tl.int32) + o_row) * taps + o_col % taps
            perm = find(p_crow_of, p_col_of, o_col // taps, whole, m_col, nnz, steps)
            tl.store(p_perm + start + place, perm, mask=m_col)


@triton.jit(do_not_specialize=["steps", "row_steps"])
def position_kernel(
    p_crow_old,
    p_col_old,
    p_crow,
    p_col,
    p_total,
    p_map,
    nnz_old,
    nnz,
    rows,
    steps,
    row_steps,
    BLOCK: tl.constexpr,
    GUARDED: tl.constexpr,
):
    """GUARDED: entries stay where they are unless ``total`` is ``nnz``."""
    first = tl.program_id(0).to(tl.int64) * BLOCK
    m_entry = tl.arange(0, BLOCK) < nnz - first
    o_entry = first.to(tl.int32) + tl.arange(0, BLOCK)
    zero = tl.zeros((BLOCK,), tl.int32)
    row = lower_bound(p_crow, zero, zero + rows + 1, o_entry + 1, row_steps) - 1
    m_row = m_entry & (row >= 0) & (row < rows)  # false where no row has the entry
    col = tl.load(p_col + o_entry, mask=m_entry, other=0)
    place = find(p_crow_old, p_col_old, row, col, m_row, nnz_old, steps)
    if GUARDED:
        place = tl.where(tl.load(p_total) == nnz, place, o_entry)
    tl.store(p_map + o_entry, place, mask=m_entry)


@triton.jit(do_not_specialize=["rows", "nnz", "layout", "steps"])
def panel_kernel(
    p_crow,
    p_col,
    p_total,
    p_starts,
    rows,
    cols,
    panel,
    numel,
    nnz,
    layout,
    steps,
    BLOCK: tl.constexpr,
    GUARDED: tl.constexpr,
):
    """GUARDED: nothing is written unless ``total`` is ``nnz``."""
    o_start = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    here = 1
    if GUARDED:
        here = (tl.load(p_total) == nnz).to(tl.int32)
    m_start = o_start < numel * here
    height = tl.maximum(rows, 1)
    border = tl.minimum(o_start // height * panel, cols).to(tl.int32)
    o_row = o_start % height
    first = tl.load(p_crow + o_row, mask=m_start, other=0)
    last = tl.load(p_crow + o_row + 1, mask=m_start, other=0)
    last = tl.minimum(last, nnz)
    place = lower_bound(p_col, tl.maximum(first, 0), last, border, steps)
    tl.store(p_starts + o_start, place, mask=m_start)
    if tl.program_id(0) == 0:
        o_size = tl.arange(0, 4)
        size = tl.where(o_size == 0, layout, tl.where(o_size == 1, rows, nnz))
        size = tl.where(o_size == 2, cols, size)
        tl.store(p_starts + numel + o_size, size.to(tl.int32), mask=o_size < 4 * here)


def tile_starts(flags: Tensor) -> Tensor:
    """Entries before each tile of a flat mask of bytes, int64, and behind them the total."""
    tiles = triton.cdiv(flags.numel(), FLAGS)
    counts = flags.new_empty(tiles, dtype=torch.int32)
    launch(count_kernel, (tiles,), flags, counts, flags.numel(), BLOCK=FLAGS, warps=WARPS)
    return scan(counts)


def compress(flags: Tensor, starts: Tensor, crow: Tensor, col: Tensor, cols: int) -> None:
    """Writes ``crow`` and ``col`` of a flat mask of bytes."""
    rows, nnz = crow.numel() - 1, col.numel()
    sizes = (flags.numel(), rows, cols, nnz, 1, 1)
    arguments = (flags, starts, starts[-1:], crow, col, None, None, None, *sizes)
    grid = (starts.numel() - 1,)
    launch(write_kernel, grid, *arguments, BLOCK=FLAGS, TRANSPOSED=False, warps=WARPS, stages=1)


def from_mask(mask: Tensor, nnz: int) -> tuple[Tensor, Tensor]:
    """Launches ``csr_from_mask``."""
    rows, cols = mask.shape
    crow = mask.new_zeros(rows + 1, dtype=torch.int32)
    col = mask.new_zeros(nnz, dtype=torch.int32)
    if mask.numel() > 0:
        flags = mask.contiguous().view(-1).view(torch.uint8)
        starts = tile_starts(flags)
        compress(flags, starts, crow, col, cols)
        if debugging() and int(starts[-1]) != nnz:
            raise RuntimeError(
                f"Expected nnz to be the number of True entries of mask, {int(starts[-1])}. "
                f"Got {nnz}."
            )
    return crow, col


def position_map(
    crow_old: Tensor,
    col_old: Tensor,
    crow: Tensor,
    col: Tensor,
    total: Tensor | None = None,
    cols: int = 2**31,
) -> Tensor:
    """Launches ``csr_position_map``; ``total`` as ``position_kernel`` takes it."""
    rows, nnz, old = crow.numel() - 1, col.numel(), col_old.numel()
    positions = torch.empty_like(col)
    grid = (triton.cdiv(nnz, ENTRIES),)
    tensors = (crow_old.contiguous(), col_old.contiguous(), crow.contiguous(), col.contiguous())
    steps = (min(old, cols).bit_length(), crow.numel().bit_length())
    arguments = (*tensors, total, positions, old, nnz, rows, *steps)
    launch(position_kernel, grid, *arguments, BLOCK=ENTRIES, GUARDED=total is not None)
    return positions


def fill_panel_starts(
    crow: Tensor, col: Tensor, cols: int, starts: Tensor, total: Tensor | None = None
) -> None:
    """Writes the table of a matrix; ``total`` as ``panel_kernel`` takes it."""
    rows, nnz = crow.numel() - 1, col.numel()
    g = PanelGeometry(rows, cols, nnz)
    grid = (max(1, triton.cdiv(g.tail, ENTRIES)),)
    sizes = (rows, cols, g.panel, g.tail, nnz, FORMAT, min(nnz, cols).bit_length())
    arguments = (crow.contiguous(), col.contiguous(), total, starts, *sizes)
    launch(panel_kernel, grid, *arguments, BLOCK=ENTRIES, GUARDED=total is not None)


def panel_starts(crow: Tensor, col: Tensor, cols: int) -> Tensor:
    """Launches ``csr_panel_starts``."""
    starts = col.new_empty(PanelGeometry(crow.numel() - 1, cols, col.numel()).numel)
    fill_panel_starts(crow, col, cols, starts)
    return starts
