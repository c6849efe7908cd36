"""``out[i] = sum_s parts[s, i]`` and ``sums[o] = sum_m grad[m, o]``, in a fixed order.

Thread mapping: one program sums BLOCK elements; columns are summed over CHUNK rows a program.
Tile: BLOCK elements; BM x BN of a gradient, whose rows are read along their features.
Accumulation: float32, parts one after the other, rows of a tile by Triton's tree.
Alignment: none asked for; addresses are int64.
Contract: the same bits for the same shapes, whatever the dtype of the result.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparsekern.kernels.launch import launch

BLOCK = 1024
CHUNK = 512  # rows of a gradient that one program sums: enough programs for any batch


@triton.jit
def sum_parts_kernel(p_parts, p_out, parts, numel, BLOCK: tl.constexpr):
    o_out = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    m_out = o_out < numel
    p_part = p_parts + o_out
    acc = tl.zeros([BLOCK], tl.float32)
    for _ in range(parts):
        acc += tl.load(p_part, mask=m_out, other=0)
        p_part += numel
    tl.store(p_out + o_out, acc.to(p_out.dtype.element_ty), mask=m_out)


@triton.jit
def sum_rows_kernel(
    p_grad, p_parts, M, N, tiles, CHUNK: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr
):
    i_n = tl.program_id(0) % tiles
    i_chunk = (tl.program_id(0) // tiles).to(tl.int64)
    o_n = i_n * BN + tl.arange(0, BN)
    m_n = o_n < N
    acc = tl.zeros([BM, BN], tl.float32)
    for at in range(0, CHUNK, BM):
        o_m = i_chunk * CHUNK + at + tl.arange(0, BM)
        mask = (o_m < M)[:, None] & m_n[None, :]
        acc += tl.load(p_grad + o_m[:, None] * N + o_n[None, :], mask=mask, other=0).to(tl.float32)
    tl.store(p_parts + i_chunk * N + o_n, tl.sum(acc, axis=0), mask=m_n)


def sum_parts(parts: Tensor, out: Tensor) -> None:
    """Adds up the first dimension of ``[S, *out.shape]``."""
    grid = (triton.cdiv(out.numel(), BLOCK),)
    launch(sum_parts_kernel, grid, parts, out, parts.shape[0], out.numel(), BLOCK=BLOCK)


def sum_rows(grad: Tensor, out: Tensor) -> None:
    """Adds up the rows of a contiguous ``[M, N]`` into ``[N]``."""
    rows, features = grad.shape
    chunks, tiles = max(1, triton.cdiv(rows, CHUNK)), triton.cdiv(features, 128)
    single = chunks == 1
    parts = out.unsqueeze(0) if single else out.new_empty(chunks, features, dtype=torch.float32)
    sizes = {"CHUNK": CHUNK, "BM": 32, "BN": 128}
    launch(sum_rows_kernel, (tiles * chunks,), grad, parts, rows, features, tiles, **sizes)
    if not single:
        sum_parts(parts, out)
