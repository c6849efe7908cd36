"""``mask[i] = scores[i] is among the k largest``, ties to the first: a radix select without a sort.

Thread mapping: programs walk tiles of the flat scores; a tile's flags are written by one program.
Tile: BLOCK scores. Accumulation: integers, int32 in a program, int64 over all: order cannot matter.
Alignment: none asked for; addresses are int64.
Roofline: two reads of the scores, one write; six reads where the sample misled, five without one,
one more where only some of those equal to the threshold are kept.
Contract: sparsekern/ops/mask/topk.py.

Scores are seen as ordered integers of four digits, ``u`` in [0, 2^32). A sample brackets the
threshold; one pass counts what is above the bracket and lists what is inside. Four passes over the
lists find the threshold digit by digit from histograms; over the scores themselves where a list
would be too long or the bracket missed. All of this is decided on the device from ``state``:

    [0] low, [1] high of the bracket   [2] scores above it, [3] inside, [4] lists that are too short
    [8 + 3 p ...] prefix, need, equal: the first p digits of the threshold, how many scores with
                  that prefix are still to be kept, and how many have it
    [32 + 256 p ...] histogram of digit p

Equal scores are ranked by counts of each tile and their running sums, only where some stay out.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparsekern.kernels.launch import INTERPRETING, debugging, launch
from sparsekern.kernels.mask.bits import count, flag_of, unpack_bits
from sparsekern.kernels.mask.order import DIGITS, digit_at, digits_of, key_of, scan, signed

BLOCK = 65536 if INTERPRETING else 4096  # the interpreter pays by the program
WARPS = 8
PROGRAMS = 2 if INTERPRETING else 1024  # about what is resident at once
SMALL = 8192  # scores that one program holds in registers
SAMPLES = 16384
SAMPLED = 2**17  # scores from which on a sample pays
ROWS = tl.constexpr(8)  # where these parts of the state begin
HISTOGRAMS = tl.constexpr(32)
STATE = 32 + 4 * 256
SCARCE = 8 + 13  # need and equal of the whole threshold: some are left out where need is less


@triton.jit
def candidates(p_scores, p_among, first, numel, AMONG: tl.constexpr, BLOCK: tl.constexpr):
    """Keys from ``first`` on, and which take part: all, by flags (AMONG = 1) or by bits (2)."""
    o_score = tl.arange(0, BLOCK)
    m_score = o_score < numel - first
    key = key_of(tl.load(p_scores + first + o_score, mask=m_score, other=0.0))
    if AMONG == 1:
        m_score = flag_of(p_among + first, o_score, m_score, False) != 0
    if AMONG == 2:
        m_score = flag_of(p_among + first // 8, o_score, m_score, True) != 0
    return key, m_score


@triton.jit
def store_flags(p_mask, i_tile, keep, numel, PACKED: tl.constexpr, BLOCK: tl.constexpr):
    """The flags of one tile, as bytes or as bits."""
    if PACKED:
        o_bit = tl.arange(0, 8)
        byte = tl.sum(tl.reshape(keep, (BLOCK // 8, 8)) << o_bit[None, :], axis=1)
        o_byte = i_tile.to(tl.int64) * (BLOCK // 8) + tl.arange(0, BLOCK // 8)
        tl.store(p_mask + o_byte, byte.to(tl.uint8), mask=o_byte * 8 < numel)
    else:
        o_flag = i_tile.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        tl.store(p_mask + o_flag, keep.to(tl.uint8), mask=o_flag < numel)


@triton.jit(do_not_specialize=["k"])
def small_kernel(
    p_scores,
    p_among,
    p_mask,
    k,
    numel,
    AMONG: tl.constexpr,
    PACKED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """All scores in one program: the threshold bit by bit, then the rank of those equal to it."""
    key, m_score = candidates(p_scores, p_among, tl.zeros((), tl.int64), numel, AMONG, BLOCK)
    u = tl.zeros((), tl.int64)
    bit = tl.full((), 2147483648, tl.int64)
    for _ in range(32):
        reach = tl.sum((m_score & (key >= signed(u | bit))).to(tl.int32), axis=0)
        u = tl.where(reach >= k, u | bit, u)
        bit = bit >> 1
    above = (m_score & (key > signed(u))).to(tl.int32)
    tied = (m_score & (key == signed(u))).to(tl.int32)
    room = k - tl.sum(above, axis=0)
    keep = above + tl.where(tl.cumsum(tied, axis=0) <= room, tied, 0)
    store_flags(p_mask, tl.program_id(0), keep, numel, PACKED, BLOCK)


@triton.jit(do_not_specialize=["k"])
def sample_kernel(p_scores, p_among, p_state, k, numel, AMONG: tl.constexpr, SAMPLES: tl.constexpr):
    """The bracket: ranks ``k SAMPLES / numel`` in the sample, four deviations to either side.

    One score of each of SAMPLES equal stretches, at a place that a hash chooses: against patterns.
    """
    stretch = numel // SAMPLES
    o_sample = tl.arange(0, SAMPLES)
    noise = o_sample.to(tl.uint32) * 2654435761
    noise = (noise ^ (noise >> 15)) * 2246822519
    noise = noise ^ (noise >> 13)
    o_score = o_sample.to(tl.int64) * stretch + ((noise.to(tl.int64) * stretch) >> 32)
    m_score = o_score < numel
    key = key_of(tl.load(p_scores + o_score, mask=m_score, other=0.0))
    if AMONG > 0:
        m_score = flag_of(p_among, o_score, m_score, AMONG == 2) != 0
    rank = k.to(tl.float32) / numel * SAMPLES
    spread = 4.0 * tl.sqrt(tl.maximum(rank * (1.0 - rank / SAMPLES), 0.0)) + 8.0
    first = tl.maximum(rank - spread, 0.0).to(tl.int32)
    last = (rank + spread).to(tl.int32) + 1
    # The largest u that at least `first` (`last`) keys reach; what no key bounds stays open.
    high = tl.zeros((), tl.int64)
    low = tl.zeros((), tl.int64)
    bit = tl.full((), 2147483648, tl.int64)
    for _ in range(32):
        reach = tl.sum((m_score & (key >= signed(high | bit))).to(tl.int32), axis=0)
        high = tl.where(reach >= first, high | bit, high)
        reach = tl.sum((m_score & (key >= signed(low | bit))).to(tl.int32), axis=0)
        low = tl.where(reach >= last, low | bit, low)
        bit = bit >> 1
    tl.store(p_state, low)
    tl.store(p_state + 1, high)


@triton.jit
def collect_kernel(
    p_scores,
    p_among,
    p_state,
    p_lists,
    p_sizes,
    numel,
    share,
    AMONG: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Counts the keys above the bracket and inside; each program lists those inside that it meets.

    NOTE: a list of its own spares each tile an atomic, whose answer it would wait for.
    """
    low = tl.load(p_state)
    high = tl.load(p_state + 1)
    above = tl.zeros((), tl.int64)
    size = tl.zeros((), tl.int64)
    p_list = p_lists + tl.program_id(0).to(tl.int64) * share
    tiles = tl.cdiv(numel, BLOCK).to(tl.int32)
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        first = tl.cast(tile, tl.int64) * BLOCK
        key, m_score = candidates(p_scores, p_among, first, numel, AMONG, BLOCK)
        above += tl.sum((m_score & (key > signed(high))).to(tl.int32), axis=0)
        inside = (m_score & (key >= signed(low)) & (key <= signed(high))).to(tl.int32)
        if low != high:
            place = tl.cumsum(inside, axis=0) - 1
            tl.store(p_list + size + place, key, mask=(inside != 0) & (place < share - size))
        size += tl.sum(inside, axis=0)
    tl.atomic_add(p_state + 2, above, sem="relaxed")
    tl.atomic_add(p_state + 3, size, sem="relaxed")
    tl.atomic_add(p_state + 4, (size > share).to(tl.int64), sem="relaxed")
    tl.store(p_sizes + tl.program_id(0), size)


@triton.jit
def how(p_state, k):
    """Whether the bracket is the threshold itself, and whether the lists hold it.

    Without a sample the state is zero, nothing is inside, and neither holds.
    """
    above = tl.load(p_state + 2)
    inside = tl.load(p_state + 3)
    hit = (above < k) & (k <= above + inside)
    alike = tl.load(p_state) == tl.load(p_state + 1)
    listed = hit & (tl.load(p_state + 4) == 0) & (alike == 0)
    return hit & alike, listed, above, inside


@triton.jit
def narrowed(p_state, k, above, listed, PASS: tl.constexpr):
    """Prefix, need and equal after PASS digits, from the histogram of the last one."""
    if PASS == 0:
        return tl.zeros((), tl.int64), k - tl.where(listed, above, 0), tl.zeros((), tl.int64)
    p_row = p_state + ROWS + 3 * (PASS - 1)
    bins = tl.load(p_state + HISTOGRAMS + DIGITS * (PASS - 1) + tl.arange(0, DIGITS))
    digit, need, equal = digit_at(bins, tl.load(p_row + 1))
    return tl.load(p_row) * DIGITS + digit, need, equal


@triton.jit(do_not_specialize=["k"])
def histogram_kernel(
    p_scores,
    p_among,
    p_state,
    p_lists,
    p_sizes,
    k,
    numel,
    share,
    AMONG: tl.constexpr,
    PASS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    done, listed, above, _ = how(p_state, k)
    if done == 0:
        prefix, need, _ = narrowed(p_state, k, above, listed, PASS)
        if tl.program_id(0) == 0:
            tl.store(p_state + ROWS + 3 * PASS, prefix)
            tl.store(p_state + ROWS + 3 * PASS + 1, need)
        bins = tl.zeros((DIGITS,), tl.int32)
        if listed:
            size = tl.load(p_sizes + tl.program_id(0))
            p_list = p_lists + tl.program_id(0).to(tl.int64) * share
            for tile in range(0, tl.cdiv(size, BLOCK).to(tl.int32)):
                first = tl.cast(tile, tl.int64) * BLOCK
                m_key = tl.arange(0, BLOCK) < size - first
                key = tl.load(p_list + first + tl.arange(0, BLOCK), mask=m_key, other=0)
                bins += digits_of(key, m_key, prefix, PASS)
        else:
            tiles = tl.cdiv(numel, BLOCK).to(tl.int32)
            for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
                first = tl.cast(tile, tl.int64) * BLOCK
                key, m_score = candidates(p_scores, p_among, first, numel, AMONG, BLOCK)
                bins += digits_of(key, m_score, prefix, PASS)
        p_bins = p_state + HISTOGRAMS + DIGITS * PASS + tl.arange(0, DIGITS)
        tl.atomic_add(p_bins, bins.to(tl.int64), mask=bins > 0, sem="relaxed")


@triton.jit(do_not_specialize=["k"])
def ties_kernel(
    p_scores,
    p_among,
    p_state,
    p_counts,
    k,
    numel,
    AMONG: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The threshold for good; how many of a tile equal it, where not all of them are kept."""
    done, listed, above, inside = how(p_state, k)
    threshold, need, equal = narrowed(p_state, k, above, listed, 4)
    threshold = tl.where(done, tl.load(p_state), threshold)
    need = tl.where(done, k - above, need)
    equal = tl.where(done, inside, equal)
    if tl.program_id(0) == 0:
        tl.store(p_state + ROWS + 12, threshold)
        tl.store(p_state + ROWS + 13, need)
        tl.store(p_state + ROWS + 14, equal)
    if need < equal:
        tiles = tl.cdiv(numel, BLOCK).to(tl.int32)
        for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
            first = tl.cast(tile, tl.int64) * BLOCK
            key, m_score = candidates(p_scores, p_among, first, numel, AMONG, BLOCK)
            tied = tl.sum((m_score & (key == signed(threshold))).to(tl.int32), axis=0)
            tl.store(p_counts + tile, tied)


@triton.jit
def write_kernel(
    p_scores,
    p_among,
    p_state,
    p_starts,
    p_mask,
    numel,
    AMONG: tl.constexpr,
    PACKED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    threshold = signed(tl.load(p_state + ROWS + 12))
    need = tl.load(p_state + ROWS + 13)
    i_tile = tl.program_id(0)
    first = i_tile.to(tl.int64) * BLOCK
    key, m_score = candidates(p_scores, p_among, first, numel, AMONG, BLOCK)
    keep = (m_score & (key >= threshold)).to(tl.int32)
    if need < tl.load(p_state + ROWS + 14):
        tied = (m_score & (key == threshold)).to(tl.int32)
        rank = tl.load(p_starts + i_tile) + tl.cumsum(tied, axis=0) - tied
        keep = tl.where((tied != 0) & (rank >= need), 0, keep)
    store_flags(p_mask, i_tile, keep, numel, PACKED, BLOCK)


def topk(scores: Tensor, k: int, among: Tensor | None = None) -> Tensor:
    """Launches ``mask_topk``."""
    flags = None if among is None else among.contiguous().view(torch.uint8)
    out = scores.new_empty(scores.shape, dtype=torch.uint8)
    _select(scores, k, flags, 0 if among is None else 1, out, False)
    return out.view(torch.bool)


def topk_bits(scores: Tensor, k: int, among: Tensor | None = None) -> Tensor:
    """Launches ``mask_topk_bits``."""
    bits = None if among is None else among.contiguous()
    out = scores.new_empty((scores.numel() + 7) // 8, dtype=torch.uint8)
    _select(scores, k, bits, 0 if among is None else 2, out, True)
    return out


def _select(
    scores: Tensor, k: int, among: Tensor | None, kind: int, out: Tensor, packed: bool
) -> None:
    numel = scores.numel()
    if k == 0:
        out.zero_()
        return
    if among is not None and debugging():
        flags = unpack_bits(among, (numel,)) if packed else among
        if k > int(count(flags)):
            raise RuntimeError(f"Expected k to be at most the number of candidates. Got {k}.")
    scores = scores.contiguous()
    if numel <= SMALL:
        small = {"AMONG": kind, "PACKED": packed, "BLOCK": 1024 if numel <= 1024 else SMALL}
        launch(small_kernel, (1,), scores, among, out, k, numel, warps=WARPS, **small)
        return
    tiles = triton.cdiv(numel, BLOCK)
    walk = (min(tiles, PROGRAMS),)
    same = {"AMONG": kind, "BLOCK": BLOCK, "warps": WARPS, "stages": 1}
    state = scores.new_zeros(STATE, dtype=torch.int64)
    share = triton.cdiv(numel, 12 * walk[0]) if numel >= SAMPLED else 0
    lists = scores.new_empty(share * walk[0], dtype=torch.int32)
    sizes = state.new_empty(walk)
    if share > 0:
        sampling = {"AMONG": kind, "SAMPLES": SAMPLES, "warps": 16}
        launch(sample_kernel, (1,), scores, among, state, k, numel, **sampling)
        launch(collect_kernel, walk, scores, among, state, lists, sizes, numel, share, **same)
    for digit in range(4):
        arguments = (scores, among, state, lists, sizes, k, numel, share)
        launch(histogram_kernel, walk, *arguments, PASS=digit, **same)
    counts = scores.new_empty(tiles, dtype=torch.int32)
    launch(ties_kernel, walk, scores, among, state, counts, k, numel, **same)
    starts = scan(counts, state[SCARCE : SCARCE + 2])
    launch(write_kernel, (tiles,), scores, among, state, starts, out, numel, PACKED=packed, **same)
