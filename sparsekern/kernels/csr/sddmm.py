"""``dvalues[j] = sum_b grad[row[j], b] panel[col[j], b]`` for kept entries; ``dbias`` = row sums.

Thread mapping: one program takes BM neighbouring entries, so programs have equal work whatever the
  rows are; entries of one row read the same gradients, from the L1 cache. The row of an entry is
  found by halving. Few entries of many positions are cut into pieces by shape alone and their sums
  added in order: the same bits in every run.
Tile: [BM, BN] products of entries and positions. Roofline: the panel's 2 or 4 bytes of the L2 cache
  an entry and position, like the product itself (unconfirmed).
Accumulation: float32, one sum a lane, lanes added at the end.
Alignment: rows of the panel at 16 elements for wide loads; none is asked for; addresses are int64.
Contract: sparsekern/ops/csr/linear.py and conv2d.py.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from sparsekern.kernels.csr.batch_panel import Panel
from sparsekern.kernels.csr.spmm import Rows
from sparsekern.kernels.launch import INTERPRETING, launch
from sparsekern.kernels.reduce import sum_parts

PROGRAMS = 1024  # as many keep a GPU busy; more pieces of the batch are not cut
LEAST_PIECE = 1024  # positions


@triton.jit
def sddmm_kernel(
    p_grad,
    p_panel,
    p_begin,
    p_col,
    p_offset,
    p_place,
    p_sums,
    nnz,
    rows,
    positions,
    piece,
    steps,
    grad_pitch,
    pitch,
    group,
    group_pitch,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    o_e = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
    m_e = o_e < nnz
    low = tl.zeros([BM], tl.int32)  # the entry is not before this row,
    high = low + rows  # and before this one
    for _ in range(steps):
        middle = (low + high) // 2
        before = tl.load(p_begin + middle, mask=m_e, other=0) <= o_e
        low = tl.where(before, middle, low)
        high = tl.where(before, high, middle)
    p_g = p_grad + low.to(tl.int64)[:, None] * grad_pitch
    if p_offset is None:
        offset = tl.load(p_col + o_e, mask=m_e, other=0).to(tl.int64) * pitch
    else:
        offset = tl.load(p_offset + o_e, mask=m_e, other=0)
        offset += (low // group).to(tl.int64) * group_pitch
    p_x = p_panel + offset[:, None]
    first = tl.program_id(1).to(tl.int64) * piece
    last = tl.minimum(first + piece, positions)
    acc = tl.zeros([BM, BN], tl.float32)
    for start in range(first, last, BN):
        o_n = start + tl.arange(0, BN)
        m_n = o_n < last
        place = o_n
        if p_place is not None:
            place = tl.load(p_place + o_n, mask=m_n, other=0)
        mask = m_e[:, None] & m_n[None, :]
        b_g = tl.load(p_g + o_n[None, :], mask=mask, other=0.0).to(tl.float32)
        b_x = tl.load(p_x + place[None, :], mask=mask, other=0.0).to(tl.float32)
        acc += b_g * b_x
    o_sum = tl.program_id(1).to(tl.int64) * nnz + o_e
    tl.store(p_sums + o_sum, tl.sum(acc, axis=1), mask=m_e)


@triton.jit
def row_sum_kernel(
    p_grad, p_sums, rows, positions, piece, pitch, BM: tl.constexpr, BN: tl.constexpr
):
    o_m = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
    m_m = o_m < rows
    first = tl.program_id(1).to(tl.int64) * piece
    last = tl.minimum(first + piece, positions)
    acc = tl.zeros([BM, BN], tl.float32)
    for start in range(first, last, BN):
        o_n = start + tl.arange(0, BN)
        mask = m_m[:, None] & (o_n < last)[None, :]
        b_g = tl.load(p_grad + o_m[:, None] * pitch + o_n[None, :], mask=mask, other=0.0)
        acc += b_g.to(tl.float32)
    o_sum = tl.program_id(1).to(tl.int64) * rows + o_m
    tl.store(p_sums + o_sum, tl.sum(acc, axis=1), mask=m_m)


def config(entries: int, positions: int) -> tuple[int, int]:
    """Entries and positions of a tile of :func:`sddmm_kernel`."""
    if INTERPRETING:  # a program costs the interpreter much the same whatever its size
        bm = min(1024, triton.next_power_of_2(max(entries, 1)))
        return bm, min(2**18 // bm, triton.next_power_of_2(max(positions, 1)))
    return 8, 128


def cut(positions: int, tiles: int, step: int) -> tuple[int, int]:
    """Positions of one piece, whole steps of the kernel's, and how many pieces there are."""
    wanted = min(PROGRAMS // max(tiles, 1), triton.cdiv(positions, LEAST_PIECE))
    piece = triton.cdiv(triton.cdiv(positions, max(wanted, 1)), step) * step
    return piece, max(1, triton.cdiv(positions, max(piece, 1)))


def sddmm(
    grad: Panel, panel: Panel, rows: Rows, positions: int, places: Tensor | None = None
) -> Tensor:
    """The sampled product of two panels: one number for each entry of the rows."""
    if places is None:
        positions = min(grad.readable, panel.readable)
    nnz, count = rows.col.numel(), rows.begin.numel() - 1
    bm, bn = config(nnz, positions)
    tiles = triton.cdiv(nnz, bm)
    piece, pieces = cut(positions, tiles, bn)
    sums = rows.values.new_empty(pieces, nnz)
    tensors = (grad.data, panel.data, rows.begin, rows.col, rows.offset, places, sums)
    numbers = (
        *(nnz, count, positions, piece, count.bit_length(), grad.pitch),
        *(panel.pitch, rows.group, rows.channels * panel.pitch),
    )
    launch(sddmm_kernel, (tiles, pieces), *tensors, *numbers, BM=bm, BN=bn)
    return _added(sums)


def row_sums(grad: Panel, rows: int, positions: int, like: Tensor) -> Tensor:
    """Sums over all positions of each row of a panel, in the dtype of ``like``."""
    bm, bn = config(rows, positions)
    tiles = triton.cdiv(rows, bm)
    piece, pieces = cut(positions, tiles, bn)
    sums = like.new_empty(pieces, rows)
    numbers = (rows, positions, piece, grad.pitch)
    launch(row_sum_kernel, (tiles, pieces), grad.data, sums, *numbers, BM=bm, BN=bn)
    return _added(sums)


def _added(sums: Tensor) -> Tensor:
    pieces, numel = sums.shape
    if pieces == 1:
        return sums[0]
    out = sums.new_empty(numel)
    sum_parts(sums, out)
    return out
