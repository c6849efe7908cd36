"""``order[i]`` = the row of blocks with the i-th most of them; equal ones in their own order.

Thread mapping: one program ranks BLOCK rows, counting the longer ones among all.
Tile: BLOCK x BLOCK comparisons; O(rows^2) in all, microseconds up to MOST_ROWS (unconfirmed).
Accumulation: int32.
Alignment: none asked for.
Contract: a permutation of the rows, with no synchronisation; tests/kernels/test_bsr.py.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from sparsekern.kernels.launch import launch

BLOCK = 64
MOST_ROWS = 8192  # above, ranking costs more than the uneven end of so long a grid (unconfirmed)
GROUP = 8  # tiles of the batch that share rows of blocks in L2, and balance each other


@triton.jit
def count_blocks(p_crow, o_row, rows, taps):
    """Blocks of each row, over all taps of a convolution; -1 for no row."""
    m_row = o_row < rows
    b_count = tl.where(m_row, 0, -1)
    for i_tap in range(taps):
        p_row = p_crow + i_tap * rows + o_row
        b_count += tl.load(p_row + 1, mask=m_row, other=0) - tl.load(p_row, mask=m_row, other=0)
    return b_count


@triton.jit
def order_kernel(p_crow, p_order, rows, taps, BLOCK: tl.constexpr):
    o_row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    b_count = count_blocks(p_crow, o_row, rows, taps)
    b_rank = tl.zeros([BLOCK], tl.int32)
    for first in range(0, rows, BLOCK):
        o_other = first + tl.arange(0, BLOCK)
        b_other = count_blocks(p_crow, o_other, rows, taps)
        equal = (b_other[None, :] == b_count[:, None]) & (o_other[None, :] < o_row[:, None])
        before = (b_other[None, :] > b_count[:, None]) | equal
        b_rank += tl.sum(before.to(tl.int32), axis=1)
    tl.store(p_order + b_rank, o_row, mask=o_row < rows)


def longest_first(crow: Tensor, taps: int = 1) -> Tensor | None:
    """int32 ``[rows]``, or None where rows stay in their own order; ``crow`` lists the rows of each
    of ``taps`` matrices, whose blocks count together."""
    rows = (crow.shape[0] - 1) // taps
    if not 1 < rows * taps <= MOST_ROWS:
        return None
    order = crow.new_empty(rows)
    launch(order_kernel, (triton.cdiv(rows, BLOCK),), crow, order, rows, taps, BLOCK=BLOCK)
    return order


@triton.jit
def place(program, p_order, m_tiles, outputs, TILES: tl.constexpr, GROUP: tl.constexpr):
    """Row of blocks, tile in it and tile of the batch of this program: within a group of batch
    tiles, all programs of the longest row come first.

    NOTE: the group's inputs and all values stay in L2 while rows take turns, and the last group,
    whose end is the grid's, is GROUP times as fine as one tile of the batch. (unconfirmed)
    """
    first = program // (GROUP * outputs) * GROUP
    size = tl.minimum(m_tiles - first, GROUP)
    within = program % (GROUP * outputs)
    i_output = within // size
    i_row = i_output // TILES
    if p_order is not None:
        i_row = tl.load(p_order + i_row)
    return i_row, i_output % TILES, (first + within % size).to(tl.int64)
