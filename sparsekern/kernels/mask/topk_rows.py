"""``mask[r, i] = scores[r, i] is among the counts[r] largest of row r``, ties to the first.

Thread mapping: one program holds BR short rows, or walks one long row.
Tile: BR x BC scores, rows whole; BLOCK scores of a long row.
Accumulation: int32. Alignment: none asked for; addresses are int64.
Roofline: one read and one write; a short row is read once, a long one five times, from L2.
Contract: sparsekern/ops/mask/topk_rows.py.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparsekern.kernels.launch import INTERPRETING, debugging, launch
from sparsekern.kernels.mask.order import DIGITS, digit_at, digits_of, key_of, signed

LONG = 4096  # a longer row is walked
TILE = 65536 if INTERPRETING else 4096  # the interpreter pays by the program
WARPS = 8


@triton.jit
def short_kernel(
    p_scores,
    p_counts,
    p_among,
    p_mask,
    rows,
    cols,
    AMONG: tl.constexpr,
    BR: tl.constexpr,
    BC: tl.constexpr,
):
    """Each row's threshold bit by bit, then the rank of those equal to it."""
    o_row = tl.program_id(0).to(tl.int64) * BR + tl.arange(0, BR)
    o_col = tl.arange(0, BC)
    m_score = (o_row[:, None] < rows) & (o_col[None, :] < cols)
    o_score = o_row[:, None] * cols + o_col[None, :]
    key = key_of(tl.load(p_scores + o_score, mask=m_score, other=0.0))
    part = m_score
    if AMONG:
        part = m_score & (tl.load(p_among + o_score, mask=m_score, other=0) != 0)
    need = tl.load(p_counts + o_row, mask=o_row < rows, other=0)
    need = tl.minimum(need, tl.sum(part.to(tl.int32), axis=1)).to(tl.int32)
    u = tl.zeros((BR,), tl.int64)
    bit = tl.full((), 2147483648, tl.int64)
    for _ in range(32):
        reach = tl.sum((part & (key >= signed(u | bit)[:, None])).to(tl.int32), axis=1)
        u = tl.where(reach >= need, u | bit, u)
        bit = bit >> 1
    threshold = signed(u)[:, None]
    above = (part & (key > threshold)).to(tl.int32)
    tied = (part & (key == threshold)).to(tl.int32)
    room = need - tl.sum(above, axis=1)
    keep = above + tl.where(tl.cumsum(tied, axis=1) <= room[:, None], tied, 0)
    tl.store(p_mask + o_score, keep.to(tl.uint8), mask=m_score)


@triton.jit
def long_kernel(
    p_scores, p_counts, p_among, p_mask, cols, AMONG: tl.constexpr, BLOCK: tl.constexpr
):
    """Each row's threshold digit by digit, then the rank of those equal to it."""
    i_row = tl.program_id(0).to(tl.int64)
    first = i_row * cols
    need = tl.maximum(tl.load(p_counts + i_row), 0).to(tl.int32)
    prefix = tl.zeros((), tl.int64)
    for PASS in tl.static_range(4):
        bins = tl.zeros((DIGITS,), tl.int32)
        for start in range(0, cols, BLOCK):
            o_score = start + tl.arange(0, BLOCK)
            part = o_score < cols
            key = key_of(tl.load(p_scores + first + o_score, mask=part, other=0.0))
            if AMONG:
                part = tl.load(p_among + first + o_score, mask=part, other=0) != 0
            bins += digits_of(key, part, prefix, PASS)
        digit, need, _ = digit_at(bins, need)
        prefix = prefix * DIGITS + digit
    threshold = signed(prefix)
    before = tl.zeros((), tl.int32)
    for start in range(0, cols, BLOCK):
        o_score = start + tl.arange(0, BLOCK)
        m_score = o_score < cols
        part = m_score
        key = key_of(tl.load(p_scores + first + o_score, mask=m_score, other=0.0))
        if AMONG:
            part = tl.load(p_among + first + o_score, mask=m_score, other=0) != 0
        above = (part & (key > threshold)).to(tl.int32)
        tied = (part & (key == threshold)).to(tl.int32)
        keep = above + tl.where(before + tl.cumsum(tied, axis=0) <= need, tied, 0)
        tl.store(p_mask + first + o_score, keep.to(tl.uint8), mask=m_score)
        before += tl.sum(tied, axis=0)


def topk_rows(scores: Tensor, counts: Tensor, among: Tensor | None = None) -> Tensor:
    """Launches ``mask_topk_rows``."""
    rows, cols = scores.shape
    out = scores.new_empty(scores.shape, dtype=torch.uint8)
    flags = None if among is None else among.contiguous().view(torch.uint8)
    if out.numel() == 0:
        return out.view(torch.bool)
    if debugging():
        most = cols if among is None else among.sum(1)
        if bool((counts < 0).any()) or bool((counts > most).any()):
            raise RuntimeError(
                "Expected counts to be between 0 and the number of candidates of each row. "
                f"Got {counts.tolist()}."
            )
    scores, counts = scores.contiguous(), counts.contiguous()
    with_flags = flags is not None
    if cols > LONG:
        walk = {"AMONG": with_flags, "BLOCK": LONG, "warps": WARPS, "stages": 1}
        launch(long_kernel, (rows,), scores, counts, flags, out, cols, **walk)
        return out.view(torch.bool)
    width = max(16, triton.next_power_of_2(cols))
    height = TILE // width
    tile = {"AMONG": with_flags, "BR": height, "BC": width, "warps": WARPS}
    grid = (triton.cdiv(rows, height),)
    launch(short_kernel, grid, scores, counts, flags, out, rows, cols, **tile)
    return out.view(torch.bool)
