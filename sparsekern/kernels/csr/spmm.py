"""``y[r, b] = activation(bias[r] + sum_j values[j] panel[col[j], b])`` over the entries j of row r.

Thread mapping: one program makes BM rows of BN positions (rows of a batch, or output pixels); rows
  run fastest over programs, so those at work share a strip of the panel in the L2 cache. A tile
  takes as long as its longest row; there are many more tiles than multiprocessors, which evens out.
Tile: [BM, BK, BN] sums in registers while the rows are walked BK entries at a time, added over BK
  at the end: for many positions BN is long and BK the loads in flight, for few the other way round.
  Roofline: 2 or 4 bytes of the L2 cache an entry and position, and nothing is reused between rows
  (their columns differ): 2 bytes at 6 TB/s are 3e12 multiply-adds a second (unconfirmed), a
  hundredth of what dense tensor cores do, so dense wins above density 0.01.
Accumulation: float32, BK sums of an output; outputs are turned in registers where channels are
  innermost.
Alignment: rows of the panel at 16 elements for wide loads; none is asked for; addresses are int64.
Contract: sparsekern/ops/csr/linear.py and conv2d.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparsekern.kernels.activation import CODES, activated
from sparsekern.kernels.csr.batch_panel import Pair, Panel
from sparsekern.kernels.csr.index import lower_bound
from sparsekern.kernels.launch import INTERPRETING, launch


@dataclass(frozen=True)
class Rows:
    """Compressed rows: those of row ``r`` begin at ``begin[r]`` and end at ``begin[r + after]``.

    ``perm``: where the values are, if not in order. ``offset``: where in a panel of images the
    entries' numbers are. ``group``: rows of one group, whose channels are ``channels`` further on
    in the panel than those of the group before.
    """

    begin: Tensor
    col: Tensor
    values: Tensor
    perm: Tensor | None = None
    offset: Tensor | None = None
    after: int = 1
    group: int = 1
    channels: int = 0


@dataclass(frozen=True)
class Outputs:
    """What is written: ``positions`` of so many ``pixels`` each, ``width`` to a line; reading moves
    by ``stride``; ``last``: channels are innermost."""

    y: Tensor
    rows: int
    positions: int
    pixels: int = 1
    width: int = 1
    stride: Pair = (1, 1)
    last: bool = True


@triton.jit
def spmm_kernel(
    p_panel,
    p_begin,
    p_col,
    p_values,
    p_perm,
    p_offset,
    p_bias,
    p_y,
    rows,
    positions,
    readable,
    after,
    pitch,
    group,
    group_pitch,
    pixels,
    width,
    image,
    step_h,
    step_w,
    activation,
    LAST: tl.constexpr,
    BM: tl.constexpr,
    BK: tl.constexpr,
    BN: tl.constexpr,
):
    tiles = tl.cdiv(rows, BM)
    i_m = tl.program_id(0) % tiles
    i_n = tl.program_id(0) // tiles
    o_m = i_m * BM + tl.arange(0, BM)
    o_n = i_n.to(tl.int64) * BN + tl.arange(0, BN)
    m_m = o_m < rows
    m_n = o_n < positions
    m_read = o_n < readable
    if p_offset is None:
        p_tile = p_panel + o_n[None, None, :]
    else:
        inner = o_n % pixels
        place = o_n // pixels * image + inner // width * step_h + inner % width * step_w
        first = (o_m // group).to(tl.int64) * group_pitch
        p_tile = p_panel + first[:, None, None] + place[None, None, :]
    begin = tl.load(p_begin + o_m, mask=m_m, other=0)
    end = tl.load(p_begin + o_m + after, mask=m_m, other=0)
    acc = tl.zeros([BM, BK, BN], tl.float32)
    for k in range(0, tl.max(end - begin, axis=0), BK):
        o_entry = k + tl.arange(0, BK)[None, :]
        m_k = o_entry < (end - begin)[:, None]  # compared before a sum of int32 could wrap
        o_k = begin[:, None] + o_entry
        if p_offset is None:
            offset = tl.load(p_col + o_k, mask=m_k, other=0).to(tl.int64) * pitch
        else:
            offset = tl.load(p_offset + o_k, mask=m_k, other=0)
        if p_perm is not None:
            o_k = tl.load(p_perm + o_k, mask=m_k, other=0)
        weight = tl.load(p_values + o_k, mask=m_k, other=0.0)
        m_x = m_k[:, :, None] & m_read[None, None, :]
        b_x = tl.load(p_tile + offset[:, :, None], mask=m_x, other=0.0)
        acc += weight[:, :, None] * b_x.to(tl.float32)
    y = tl.sum(acc, axis=1)
    if p_bias is not None:
        y += tl.load(p_bias + o_m, mask=m_m, other=0.0)[:, None]
    y = activated(y, activation)
    if LAST:
        o_y = o_n[None, :] * rows + o_m[:, None]
    else:
        o_y = ((o_n // pixels)[None, :] * rows + o_m[:, None]) * pixels + (o_n % pixels)[None, :]
    tl.store(p_y + o_y, y.to(p_y.dtype.element_ty), mask=m_m[:, None] & m_n[None, :])


@triton.jit
def group_kernel(p_begin, p_col, p_starts, channels, groups, columns, steps, BM: tl.constexpr):
    """``starts[g, c]``: the first entry of row ``c`` whose column belongs to group ``g`` or later;
    halves what is left of the row ``steps`` times."""
    o_m = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
    m_m = o_m < channels * (groups + 1)
    least = o_m // channels * columns
    low = tl.load(p_begin + o_m % channels, mask=m_m, other=0)
    high = tl.load(p_begin + o_m % channels + 1, mask=m_m, other=0)
    tl.store(p_starts + o_m, lower_bound(p_col, low, high, least, steps), mask=m_m)


def config(rows: int, positions: int, nnz: int, images: bool) -> tuple[int, int, int]:
    """Rows, entries and positions of a tile of :func:`spmm_kernel`; fewer rows times entries than
    threads, so that each thread loads those that it needs. Pixels are loaded one by one, so that
    a thread needs several of an entry."""
    if INTERPRETING:  # a program costs the interpreter much the same whatever its size
        power = triton.next_power_of_2
        bk, bn = min(8, power(max(1, nnz // rows))), min(1024, power(positions))
        return min(2**17 // (bk * bn), power(rows)), bk, bn
    if positions <= 16:
        return 4, 16, 16
    return (4, 2, 256) if images else (8, 4, 64)


def spmm(
    panel: Panel, rows: Rows, bias: Tensor | None, out: Outputs, activation: str = "none"
) -> None:
    """Launches the product of compressed rows and a panel."""
    images = rows.offset is not None
    bm, bk, bn = config(out.rows, out.positions, rows.col.numel(), images)
    grid = (triton.cdiv(out.rows, bm) * triton.cdiv(out.positions, bn),)
    tensors = (panel.data, rows.begin, rows.col, rows.values, rows.perm, rows.offset, bias, out.y)
    readable = out.positions if images else panel.readable
    numbers = (
        *(out.rows, out.positions, readable, rows.after, panel.pitch),
        *(rows.group, rows.channels * panel.pitch, out.pixels, out.width),
        *(panel.image, panel.row * out.stride[0], out.stride[1], CODES[activation]),
    )
    launch(spmm_kernel, grid, *tensors, *numbers, LAST=out.last, BM=bm, BK=bk, BN=bn)


def split_by_group(begin: Tensor, col: Tensor, channels: int, groups: int, columns: int) -> Tensor:
    """Where the entries of each group begin in compressed rows that hold all groups, flat
    ``[(groups + 1) channels]`` int32; a group has ``columns`` columns."""
    starts = begin.new_empty((groups + 1) * channels, dtype=torch.int32)
    numbers = (channels, groups, columns, col.numel().bit_length())
    launch(group_kernel, (triton.cdiv(starts.numel(), 256),), begin, col, starts, *numbers, BM=256)
    return starts
