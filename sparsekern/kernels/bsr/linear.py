"""``y = act(x W^T + bias)`` for kept blocks of W, ``dx = g W``, and ``dW = g^T x`` at kept blocks.

Thread mapping: one program a tile of outputs in one row of blocks, longest rows first; one a block.
Tile: BM of the batch x BN of a block; BK kept inputs a step, of one block or of several small ones.
Accumulation: float32, tl.dot on tensor cores in the dtype of x (float32: IEEE, or TF32 if allowed).
Alignment: sides of blocks are multiples of 16, so rows are vectors of 16 bytes; addresses int64.
Contract: sparsekern/ops/bsr/linear.py. Roofline: a block's height is the flops per byte of x from
L2, so blocks of 16 are bound by L2 and those of 64 and more by tensor cores (unconfirmed).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparsekern.kernels.activation import CODES, activated
from sparsekern.kernels.bsr.schedule import GROUP, longest_first, place
from sparsekern.kernels.launch import launch
from sparsekern.kernels.reduce import sum_parts, sum_rows

PROGRAMS = 512  # that dW is cut into at least, where the batch is long enough: some waves
CHUNK = 512  # rows of the batch that are the least for one program of dW
SMALL_BATCH = 64


@triton.jit
def multiply_kernel(
    p_x,
    p_values,
    p_bias,
    p_y,
    p_crow,
    p_col,
    p_perm,
    p_order,
    M,
    rows,
    cols,
    N_SIDE: tl.constexpr,
    K_SIDE: tl.constexpr,
    STRIDE_N: tl.constexpr,
    STRIDE_K: tl.constexpr,
    ALIGNED: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    GROUP: tl.constexpr,
    PRECISION: tl.constexpr,
    ACTIVATION: tl.constexpr,
):
    """x [M, cols K_SIDE] times the blocks of a row, as one list of inputs without gaps."""
    TILES: tl.constexpr = (N_SIDE + BN - 1) // BN
    program = tl.program_id(0)
    i_row, i_tile, i_m = place(program, p_order, tl.cdiv(M, BM), rows * TILES, TILES, GROUP)
    start = tl.load(p_crow + i_row)
    kept = (tl.load(p_crow + i_row + 1) - start) * K_SIDE
    o_m = i_m * BM + tl.arange(0, BM)
    o_n = i_tile * BN + tl.arange(0, BN)
    o_k = tl.arange(0, BK)
    m_m = o_m < M
    m_n = o_n < N_SIDE
    p_rows = p_x + o_m[:, None] * (cols * K_SIDE)
    acc = tl.zeros([BM, BN], tl.float32)
    for at in range(0, kept, BK):
        m_k = at + o_k < kept
        if K_SIDE % BK == 0:
            i_block = start + at // K_SIDE
            o_inside = tl.max_contiguous(tl.multiple_of(at % K_SIDE + o_k, BK), BK)
            o_input = tl.load(p_col + i_block) * K_SIDE + o_inside
            if p_perm is not None:
                i_block = tl.load(p_perm + i_block)
        else:
            i_block = start + (at + o_k) // K_SIDE
            o_inside = (at + o_k) % K_SIDE
            o_input = tl.load(p_col + i_block, mask=m_k, other=0) * K_SIDE + o_inside
            o_input = tl.max_contiguous(tl.multiple_of(o_input, ALIGNED), ALIGNED)
            if p_perm is not None:
                i_block = tl.load(p_perm + i_block, mask=m_k, other=0)
        o_weight = i_block.to(tl.int64) * (N_SIDE * K_SIDE) + o_inside * STRIDE_K
        b_x = tl.load(p_rows + o_input[None, :], mask=m_m[:, None] & m_k[None, :], other=0)
        p_w = p_values + o_weight[:, None] + o_n[None, :] * STRIDE_N
        b_w = tl.load(p_w, mask=m_k[:, None] & m_n[None, :], other=0)
        acc = tl.dot(b_x, b_w.to(b_x.dtype), acc, input_precision=PRECISION)
    o_y = i_row.to(tl.int64) * N_SIDE + o_n
    if p_bias is not None:
        acc += tl.load(p_bias + o_y, mask=m_n, other=0).to(tl.float32)[None, :]
    acc = activated(acc, ACTIVATION)
    p_out = p_y + o_m[:, None] * (rows * N_SIDE) + o_y[None, :]
    tl.store(p_out, acc.to(p_y.dtype.element_ty), mask=m_m[:, None] & m_n[None, :])


@triton.jit
def sample_kernel(
    p_grad,
    p_x,
    p_parts,
    p_col,
    p_col_t,
    p_perm,
    M,
    blocks,
    rows,
    cols,
    chunk,
    one,
    H: tl.constexpr,
    W: tl.constexpr,
    BH: tl.constexpr,
    BW: tl.constexpr,
    BM: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One tile of one block of grad^T x, over one chunk of the batch.

    Blocks come column by column, since the transposed index names both their row and their column.
    NOTE: tensor cores cut off what they cannot hold, always towards zero, so that the error of a
    long sum would grow with its length; each step of 16 bits is therefore added outside of them,
    where sums are rounded. ``one`` is 1.0, which the compiler must not know: it would join the two.
    """
    TILES_W: tl.constexpr = (W + BW - 1) // BW
    TILES: tl.constexpr = (H + BH - 1) // BH * TILES_W
    program = tl.program_id(0)
    i_tile = program % TILES
    i_entry = program // TILES % blocks
    i_chunk = (program // TILES // blocks).to(tl.int64)
    i_block = tl.load(p_perm + i_entry).to(tl.int64)
    o_h = i_tile // TILES_W * BH + tl.arange(0, BH)
    o_w = i_tile % TILES_W * BW + tl.arange(0, BW)
    m_h = o_h < H
    m_w = o_w < W
    p_g = p_grad + (tl.load(p_col_t + i_entry) * H + o_h)[:, None]
    p_in = p_x + (tl.load(p_col + i_block) * W + o_w)[None, :]
    first = i_chunk * chunk
    count = tl.minimum(M - first, chunk).to(tl.int32)
    acc = tl.zeros([BH, BW], tl.float32)
    for at in range(0, count, BM):
        o_at = at + tl.arange(0, BM)
        o_m = first + o_at
        m_m = o_at < count
        b_g = tl.load(p_g + o_m[None, :] * (rows * H), mask=m_h[:, None] & m_m[None, :], other=0)
        b_x = tl.load(p_in + o_m[:, None] * (cols * W), mask=m_m[:, None] & m_w[None, :], other=0)
        if b_x.dtype == tl.float32:
            acc = tl.dot(b_g, b_x, acc, input_precision=PRECISION)
        else:
            acc += tl.dot(b_g, b_x) * one
    p_out = p_parts + (i_chunk * blocks + i_block) * (H * W) + o_h[:, None] * W + o_w[None, :]
    tl.store(p_out, acc, mask=m_h[:, None] & m_w[None, :])


class Tile(NamedTuple):
    """Sizes of a program, and its warps and stages."""

    m: int
    n: int
    k: int
    warps: int
    stages: int


def tile_of(batch: int, side: int, dtype: torch.dtype) -> Tile:
    """What a program of :func:`multiply_kernel` computes, for blocks with ``side`` outputs.

    NOTE: 64 inputs a step are whole lines of 128 bytes in 16 bits and fill Hopper's wgmma;
    IEEE float32 runs on the CUDA cores, where larger tiles do not fit the registers. (unconfirmed)
    """
    n = triton.next_power_of_2(side)
    if dtype == torch.float32:
        return Tile(16 if batch <= 16 else 64, min(n, 64), 32, 4, 2)
    m = 16 if batch <= 16 else SMALL_BATCH if batch <= SMALL_BATCH else 128
    return Tile(m, min(n, 128), 64, 8 if m == 128 and n >= 128 else 4, 5)


class BlockTile(NamedTuple):
    """Rows, columns and step along the batch of a program of dW, and its warps and stages."""

    h: int
    w: int
    m: int
    warps: int
    stages: int


def block_tile(height: int, width: int, dtype: torch.dtype) -> BlockTile:
    """What a program of dW computes: a whole block where it fits the registers.

    NOTE: as many warps as there is work for: four would compute a block of 16 twice. (unconfirmed)
    """
    largest, m, stages = (64, 32, 2) if dtype == torch.float32 else (128, 64, 3)
    h = min(triton.next_power_of_2(height), largest)
    w = min(triton.next_power_of_2(width), largest)
    warps = 1 if h * w <= 256 else 2 if max(h, w) <= 32 else 4 if h * w <= 8192 else 8
    return BlockTile(h, w, m, warps, stages)


def chunks_of(batch: int, programs: int) -> tuple[int, int]:
    """Rows of the batch that one program of dW adds up, and how many such chunks there are: one,
    unless there are few programs and the batch is long. Depends on shapes alone."""
    wanted = min(triton.cdiv(PROGRAMS, programs), triton.cdiv(batch, CHUNK))
    if wanted <= 1:
        return max(1, batch), 1
    chunk = triton.cdiv(triton.cdiv(batch, wanted), 64) * 64
    return chunk, triton.cdiv(batch, chunk)


def precision_of(dtype: torch.dtype) -> str:
    """How tl.dot takes float32: as torch's own products do."""
    return "tf32" if dtype == torch.float32 and torch.backends.cuda.matmul.allow_tf32 else "ieee"


def rows_of(x: Tensor) -> Tensor:
    """``[..., n]`` as a contiguous ``[batch, n]``; a copy only where it has gaps."""
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1]).contiguous()


def weights_for(x: Tensor, values: Tensor, batch: int) -> Tensor:
    """Values as the products take them, in the dtype of x.

    NOTE: one pass of 6 bytes a weight, so that each of the batch's tiles reads 2 bytes instead of 4
    and copies them to shared memory asynchronously; a single tile converts what it has loaded.
    """
    return values if batch <= SMALL_BATCH else values.to(x.dtype)


def linear(
    x: Tensor, values: Tensor, bias: Tensor | None, probe: Tensor | None, *index: Tensor
) -> Tensor:
    """Launches ``bsr_linear``; ``probe`` is zeros."""
    return activated_linear(x, values, bias, *index, "none")


def activated_linear(x: Tensor, values: Tensor, bias: Tensor | None, *rest: Any) -> Tensor:
    """Launches ``bsr_activated_linear``."""
    *index, activation = rest
    crow, col, crow_t, *_ = index
    y = x.new_empty(*x.shape[:-1], (crow.shape[0] - 1) * values.shape[1])
    if y.numel() > 0:
        given = (crow, col, None)
        _multiply(rows_of(x), values, bias, y, given, crow_t.shape[0] - 1, activation=activation)
    return y


def _multiply(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    y: Tensor,
    index: tuple[Tensor, Tensor, Tensor | None],
    cols: int,
    *,
    transposed: bool = False,
    activation: str = "none",
) -> None:
    """``y = activation(x W^T + bias)``, W given by ``index`` of its rows, or transposed."""
    batch, (height, width) = x.shape[0], values.shape[1:]
    n_side, k_side = (width, height) if transposed else (height, width)
    tile = tile_of(batch, n_side, x.dtype)
    rows = index[0].shape[0] - 1
    grid = triton.cdiv(batch, tile.m) * rows * triton.cdiv(n_side, tile.n)
    launch(
        multiply_kernel,
        (grid,),
        *(x, weights_for(x, values, batch), bias, y, *index, longest_first(index[0])),
        *(batch, rows, cols),
        warps=tile.warps,
        stages=tile.stages,
        N_SIDE=n_side,
        K_SIDE=k_side,
        STRIDE_N=1 if transposed else width,
        STRIDE_K=width if transposed else 1,
        ALIGNED=math.gcd(k_side, tile.k),
        BM=tile.m,
        BN=tile.n,
        BK=tile.k,
        GROUP=GROUP,
        PRECISION=precision_of(x.dtype),
        ACTIVATION=CODES[activation],
    )


def linear_backward(
    grad: Tensor, x: Tensor, values: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Launches ``bsr_linear_backward``."""
    crow, col, crow_t, col_t, perm, wanted = rest
    rows, cols = crow.shape[0] - 1, crow_t.shape[0] - 1
    flat = rows_of(grad)
    dx = x.new_empty(x.shape if wanted[0] else (0,))
    dvalues = values.new_empty(values.shape if wanted[1] else (0,))
    dbias = values.new_empty(flat.shape[1] if wanted[2] else 0)
    if dx.numel() > 0:
        _multiply(flat, values, None, dx, (crow_t, col_t, perm), rows, transposed=True)
    if dvalues.numel() > 0:
        _sample(flat, rows_of(x), dvalues, (col, col_t, perm), rows, cols)
    if dbias.numel() > 0:
        sum_rows(flat, dbias)
    return dx, dvalues, dbias


def _sample(
    grad: Tensor,
    x: Tensor,
    dvalues: Tensor,
    index: tuple[Tensor, Tensor, Tensor],
    rows: int,
    cols: int,
) -> None:
    """``dvalues = grad^T x`` at kept blocks, over chunks of the batch that the shapes decide."""
    blocks, height, width = dvalues.shape
    tile = block_tile(height, width, x.dtype)
    programs = blocks * triton.cdiv(height, tile.h) * triton.cdiv(width, tile.w)
    chunk, chunks = chunks_of(x.shape[0], programs)
    parts = dvalues
    if chunks > 1:
        parts = dvalues.new_empty(chunks, *dvalues.shape, dtype=torch.float32)
    launch(
        sample_kernel,
        (programs * chunks,),
        *(grad, x, parts, *index, x.shape[0], blocks, rows, cols, chunk, 1.0),
        warps=tile.warps,
        stages=tile.stages,
        H=height,
        W=width,
        BH=tile.h,
        BW=tile.w,
        BM=tile.m,
        PRECISION=precision_of(x.dtype),
    )
    if chunks > 1:
        sum_parts(parts, dvalues)
