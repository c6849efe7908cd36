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
DIGITS = tl.constexpr(256)
BLOCK = 8192


@triton.jit
def key_of(score):
    """float32 as int32 of the same order: NaN below -inf, -0.0 equal to 0.0."""
    bits = score.to(tl.int32, bitcast=True)
    size = bits & 0x7FFFFFFF
    return tl.where(size > INFINITY, SIGN, tl.where(bits < 0, -size, size))


@triton.jit
def signed(u):
    """The key that is ``u`` from the lowest, u in [0, 2^32)."""
    return (u - 2147483648).to(tl.int32)


@triton.jit
def digits_of(key, m_key, prefix, PASS: tl.constexpr):
    """Histogram of digit PASS over the keys that begin with the prefix."""
    u = key ^ SIGN
    if PASS > 0:
        known = (u >> (32 - 8 * PASS)) & ((1 << (8 * PASS)) - 1)
        m_key = m_key & (known == prefix.to(tl.int32))
    return tl.histogram((u >> (24 - 8 * PASS)) & 255, DIGITS, mask=m_key)


@triton.jit
def digit_at(bins, need):
    """The digit that the ``need``-th largest key has, its rank among those, and how many they are.

    Fewer keys than ``need``: all of them are needed. None needed: no key is above the last digit.
    """
    o_bin = tl.arange(0, DIGITS)
    total = tl.sum(bins, axis=0)
    need = tl.minimum(need, total)
    over = total - tl.cumsum(bins, axis=0)  # in the digits above
    here = (over < need) & (need <= over + bins)
    digit = tl.where(need > 0, tl.max(tl.where(here, o_bin, 0), axis=0), DIGITS - 1)
    need -= tl.sum(tl.where(here, over, 0), axis=0)
    return digit, need, tl.sum(tl.where(here, bins, 0), axis=0)


@triton.jit
def scan_kernel(p_counts, p_starts, p_gate, tiles, BLOCK: tl.constexpr, GATED: tl.constexpr):
    """GATED: only where the first number of the gate is below the second."""
    total = tl.zeros((), tl.int64)
    walked = tiles
    if GATED:
        walked = tl.where(tl.load(p_gate) < tl.load(p_gate + 1), tiles, 0)
    for first in range(0, walked, BLOCK):
        o_tile = first + tl.arange(0, BLOCK)
        count = tl.load(p_counts + o_tile, mask=o_tile < tiles, other=0)
        running = tl.cumsum(count, axis=0)
        tl.store(p_starts + o_tile, total + running - count, mask=o_tile < tiles)
        total += tl.sum(count, axis=0)
    tl.store(p_starts + tiles, total)


def scan(counts: Tensor, gate: Tensor | None = None) -> Tensor:
    """Exclusive sums of int32 counts, int64, with the total behind them.

    ``gate``: two int64 numbers; the sums are wanted where the first is below the second.
    """
    starts = counts.new_empty(counts.numel() + 1, dtype=torch.int64)
    block, warps = (1024, 4) if counts.numel() <= 1024 else (BLOCK, 16)
    arguments = (counts, starts, gate, counts.numel())
    launch(scan_kernel, (1,), *arguments, BLOCK=block, GATED=gate is not None, warps=warps)
    return starts
