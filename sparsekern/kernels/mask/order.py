"""What selection and compaction share: scores as ordered integers, running sums over tiles.

Thread mapping: the scan is one program that walks all counts; the rest is called by other kernels.
Tile: BLOCK counts.
Accumulation: int32 in a tile, int64 over all.
Alignment: none asked for; addresses are int64.
Contract: ``starts[i] = sum of counts[:i]``, ``starts[n]`` is the total.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparsekern.kernels.launch import launch

SIGN = tl.constexpr(-(2**31))
INFINITY = tl.constexpr(0x7F800000)  # bits of float32
BLOCK = 8192


@triton.jit
def key_of(score):
    """float32 as int32 of the same order: NaN below -inf, -0.0 equal to 0.0."""
    bits = score.to(tl.int32, bitcast=True)
    size = bits & 0x7FFFFFFF
    return tl.where(size > INFINITY, SIGN, tl.where(bits < 0, -size, size))


@triton.jit
def scan_kernel(p_counts, p_starts, tiles, BLOCK: tl.constexpr):
    """PERF: one program takes some us for 8192 counts, which stand for 2^26 elements."""
    total = tl.zeros((), tl.int64)
    for first in range(0, tiles, BLOCK):
        o_tile = first + tl.arange(0, BLOCK)
        count = tl.load(p_counts + o_tile, mask=o_tile < tiles, other=0)
        running = tl.cumsum(count, axis=0)
        tl.store(p_starts + o_tile, total + running - count, mask=o_tile < tiles)
        total += tl.sum(count, axis=0)
    tl.store(p_starts + tiles, total)


def scan(counts: Tensor) -> Tensor:
    """Exclusive sums of int32 counts, int64, with the total behind them."""
    starts = counts.new_empty(counts.numel() + 1, dtype=torch.int64)
    block, warps = (1024, 4) if counts.numel() <= 1024 else (BLOCK, 16)
    launch(scan_kernel, (1,), counts, starts, counts.numel(), BLOCK=block, warps=warps)
    return starts
