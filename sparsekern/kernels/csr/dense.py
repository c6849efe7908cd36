"""``dense[r, col[j]] = values[j]`` for the entries j of row r, zero elsewhere; and the inverse.

Thread mapping: one program owns BM whole rows: it fills them with zeros and then writes its entries
  over them while they are in the cache, so device memory sees one write of the dense matrix, which
  is all that must be (the roofline); the inverse reads the sectors of kept entries only.
Tile: BM x COLUMNS zeros, then BM rows of BK entries.
Accumulation: none; numbers move as whole numbers of their size, so every bit is kept.
Alignment: none asked for; addresses are int64.
Contract: sparsekern/ops/csr/dense.py.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparsekern.kernels.csr.batch_panel import Pair
from sparsekern.kernels.launch import INTERPRETING, launch

BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
COLUMNS = 1024


@triton.jit
def to_dense_kernel(
    p_values,
    p_begin,
    p_col,
    p_dense,
    rows,
    cols,
    BM: tl.constexpr,
    BK: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    first = tl.program_id(0).to(tl.int64) * BM
    o_m = first + tl.arange(0, BM)
    m_m = o_m < rows
    end_flat = tl.minimum(first + BM, rows) * cols
    zero = tl.zeros([COLUMNS], p_dense.dtype.element_ty)
    for start in range(first * cols, end_flat, COLUMNS):
        o_flat = start + tl.arange(0, COLUMNS)
        tl.store(p_dense + o_flat, zero, mask=o_flat < end_flat)
    tl.debug_barrier()  # the zeros of other threads come before the entries
    begin = tl.load(p_begin + o_m, mask=m_m, other=0)
    end = tl.load(p_begin + o_m + 1, mask=m_m, other=0)
    for k in range(0, tl.max(end - begin, axis=0), BK):
        o_entry = k + tl.arange(0, BK)[None, :]
        m_k = o_entry < (end - begin)[:, None]  # compared before a sum of int32 could wrap
        o_k = begin[:, None] + o_entry
        col = tl.load(p_col + o_k, mask=m_k, other=0).to(tl.int64)
        b_v = tl.load(p_values + o_k, mask=m_k, other=0)
        tl.store(p_dense + o_m[:, None] * cols + col, b_v, mask=m_k)


@triton.jit
def gather_kernel(
    p_dense,
    p_begin,
    p_col,
    p_values,
    rows,
    stride_m,
    stride_k,
    BM: tl.constexpr,
    BK: tl.constexpr,
):
    o_m = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
    m_m = o_m < rows
    begin = tl.load(p_begin + o_m, mask=m_m, other=0)
    end = tl.load(p_begin + o_m + 1, mask=m_m, other=0)
    for k in range(0, tl.max(end - begin, axis=0), BK):
        o_entry = k + tl.arange(0, BK)[None, :]
        m_k = o_entry < (end - begin)[:, None]  # compared before a sum of int32 could wrap
        o_k = begin[:, None] + o_entry
        col = tl.load(p_col + o_k, mask=m_k, other=0).to(tl.int64)
        b_v = tl.load(p_dense + o_m[:, None] * stride_m + col * stride_k, mask=m_k, other=0)
        tl.store(p_values + o_k, b_v, mask=m_k)


def config(rows: int, nnz: int) -> Pair:
    """Rows of a program and entries of each at a time: one long row, or several short ones."""
    if INTERPRETING:  # a program costs the interpreter much the same whatever its size
        return min(128, triton.next_power_of_2(max(rows, 1))), 64
    return (1, 256) if nnz >= 128 * rows else (8, 32)


def to_dense(values: Tensor, crow: Tensor, col: Tensor, cols: int) -> Tensor:
    """Launches ``csr_to_dense``."""
    rows = crow.numel() - 1
    bits = BITS[values.element_size()]
    dense = values.new_empty(rows, cols)
    if dense.numel() > 0:
        bm, bk = config(rows, col.numel())
        tensors = (values.contiguous().view(bits), crow.contiguous(), col.contiguous())
        grid = (triton.cdiv(rows, bm),)
        tiles = {"BM": bm, "BK": bk, "COLUMNS": COLUMNS}
        launch(to_dense_kernel, grid, *tensors, dense.view(bits), rows, cols, **tiles)
    return dense


def gather(dense: Tensor, crow: Tensor, col: Tensor) -> Tensor:
    """Launches ``csr_gather``."""
    rows = crow.numel() - 1
    bits = BITS[dense.element_size()]
    values = dense.new_empty(col.numel())
    if values.numel() > 0:
        bm, bk = config(rows, col.numel())
        tensors = (dense.view(bits), crow.contiguous(), col.contiguous(), values.view(bits))
        grid = (triton.cdiv(rows, bm),)
        launch(gather_kernel, grid, *tensors, rows, *dense.stride(), BM=bm, BK=bk)
    return values
