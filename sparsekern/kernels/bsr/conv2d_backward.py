"""The two gradients of a convolution with kept blocks, over channels-last pixels.

Formula: dx = the convolution of grad with the transposed blocks, dW = grad^T x at kept blocks.
Thread mapping: dx: a program a tile of pixels in a chunk of channels, of one remainder by the
  stride, so that no tap is wasted; dW: a program a tile of a block, over one part of the pixels.
Tile: dx: BM pixels x BN channels, BK features of one tap a step; dW: BH x BW, BM pixels a step.
Accumulation: float32, tl.dot on tensor cores; parts of dW are summed in order.
Alignment: chunks of 16 channels are vectors of 32 bytes and more; addresses are int64.
Contract: sparsekern/ops/bsr/conv2d.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparsekern.kernels.bsr.conv2d import (
    Shape,
    images_of,
    pixel_tile,
    pixels_of,
    shape_of,
    split_pixel,
    step_of,
)
from sparsekern.kernels.bsr.linear import block_tile, chunks_of, precision_of, weights_for
from sparsekern.kernels.bsr.schedule import GROUP, longest_first, place
from sparsekern.kernels.launch import launch
from sparsekern.kernels.reduce import sum_parts, sum_rows


@triton.jit
def input_gradient_kernel(
    p_grad,
    p_values,
    p_dx,
    p_crow,
    p_col,
    p_perm,
    p_order,
    M,
    rows,
    chunks,
    size_y,
    size_x,
    out_y,
    out_x,
    kernel_x,
    stride_y,
    stride_x,
    padding_y,
    padding_x,
    dilation_y,
    dilation_x,
    taps,
    H: tl.constexpr,
    W: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    GROUP: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """dx [images, size_y, size_x, chunks W] of grad [images, out_y, out_x, rows H].

    Each remainder (i_y, i_x) of pixels by the stride has programs of its own, over M pixels
    (the last of which may lie outside): a tap reaches all of them, or none.
    """
    TILES: tl.constexpr = (W + BN - 1) // BN
    programs = tl.cdiv(M, BM) * chunks * TILES
    i_remainder = tl.program_id(0) // programs
    program = tl.program_id(0) % programs
    i_chunk, i_tile, i_m = place(program, p_order, tl.cdiv(M, BM), chunks * TILES, TILES, GROUP)
    i_y = i_remainder // stride_x
    i_x = i_remainder % stride_x
    o_m = i_m.to(tl.int32) * BM + tl.arange(0, BM)
    o_n = i_tile * BN + tl.arange(0, BN)
    o_k = tl.arange(0, BK)
    m_m = o_m < M
    m_n = o_n < W
    o_image, o_y, o_x = split_pixel(o_m, tl.cdiv(size_y, stride_y), tl.cdiv(size_x, stride_x))
    o_image = o_image.to(tl.int64)
    acc = tl.zeros([BM, BN], tl.float32)
    for i_tap in range(taps):
        from_y = i_y + padding_y - i_tap // kernel_x * dilation_y
        from_x = i_x + padding_x - i_tap % kernel_x * dilation_x
        reaches = (from_y % stride_y == 0) & (from_x % stride_x == 0)
        o_out_y = o_y + from_y // stride_y
        o_out_x = o_x + from_x // stride_x
        inside = m_m & (o_out_y >= 0) & (o_out_y < out_y) & (o_out_x >= 0) & (o_out_x < out_x)
        o_pixel = (o_image * out_y + o_out_y) * out_x + o_out_x
        p_pixel = p_grad + o_pixel[:, None] * (rows * H)
        p_row = p_crow + i_tap * chunks + i_chunk
        start = tl.load(p_row)
        kept = tl.where(reaches, (tl.load(p_row + 1) - start) * H, 0)
        for at in range(0, kept, BK):
            i_entry = start + at // H
            o_inside = tl.max_contiguous(tl.multiple_of(at % H + o_k, BK), BK)
            o_feature = tl.load(p_col + i_entry) * H + o_inside
            b_g = tl.load(p_pixel + o_feature[None, :], mask=inside[:, None], other=0)
            i_block = tl.load(p_perm + i_entry).to(tl.int64)
            p_w = p_values + (i_block * (H * W) + o_inside * W)[:, None] + o_n[None, :]
            b_w = tl.load(p_w, mask=m_n[None, :], other=0)
            acc = tl.dot(b_g, b_w.to(b_g.dtype), acc, input_precision=PRECISION)
    o_in_y = o_y * stride_y + i_y
    o_in_x = o_x * stride_x + i_x
    m_m = m_m & (o_in_y < size_y) & (o_in_x < size_x)
    o_pixel = (o_image * size_y + o_in_y) * size_x + o_in_x
    p_out = p_dx + o_pixel[:, None] * (chunks * W) + (i_chunk * W + o_n)[None, :]
    tl.store(p_out, acc.to(p_dx.dtype.element_ty), mask=m_m[:, None] & m_n[None, :])


@triton.jit
def weight_gradient_kernel(
    p_grad,
    p_x,
    p_parts,
    p_col,
    p_col_t,
    p_perm,
    M,
    rows,
    chunks,
    size_y,
    size_x,
    out_y,
    out_x,
    kernel_x,
    stride_y,
    stride_x,
    padding_y,
    padding_x,
    dilation_y,
    dilation_x,
    blocks,
    part,
    one,
    H: tl.constexpr,
    W: tl.constexpr,
    BH: tl.constexpr,
    BW: tl.constexpr,
    BM: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One tile of one block of dW, over one part of the pixels; ``one`` as for linear layers."""
    TILES_W: tl.constexpr = (W + BW - 1) // BW
    TILES: tl.constexpr = (H + BH - 1) // BH * TILES_W
    program = tl.program_id(0)
    i_tile = program % TILES
    i_entry = program // TILES % blocks
    i_part = program // TILES // blocks
    i_block = tl.load(p_perm + i_entry).to(tl.int64)
    i_column = tl.load(p_col + i_block)
    i_tap = i_column // chunks
    offset_y = i_tap // kernel_x * dilation_y - padding_y
    offset_x = i_tap % kernel_x * dilation_x - padding_x
    o_h = i_tile // TILES_W * BH + tl.arange(0, BH)
    o_w = i_tile % TILES_W * BW + tl.arange(0, BW)
    m_h = o_h < H
    m_w = o_w < W
    p_g = p_grad + (tl.load(p_col_t + i_entry) * H + o_h)[:, None]
    p_in = p_x + (i_column % chunks * W + o_w)[None, :]
    last = tl.minimum(M, (i_part + 1) * part)
    acc = tl.zeros([BH, BW], tl.float32)
    for at in range(i_part * part, last, BM):
        o_m = at + tl.arange(0, BM)
        m_m = o_m < last
        o_image, o_y, o_x = split_pixel(o_m, out_y, out_x)
        o_y = o_y * stride_y + offset_y
        o_x = o_x * stride_x + offset_x
        inside = m_m & (o_y >= 0) & (o_y < size_y) & (o_x >= 0) & (o_x < size_x)
        o_pixel = (o_image.to(tl.int64) * size_y + o_y) * size_x + o_x
        p_grads = p_g + o_m.to(tl.int64)[None, :] * (rows * H)
        b_g = tl.load(p_grads, mask=m_h[:, None] & m_m[None, :], other=0)
        p_pixels = p_in + o_pixel[:, None] * (chunks * W)
        b_x = tl.load(p_pixels, mask=inside[:, None] & m_w[None, :], other=0)
        if b_x.dtype == tl.float32:
            acc = tl.dot(b_g, b_x, acc, input_precision=PRECISION)
        else:
            acc += tl.dot(b_g, b_x) * one
    p_out = p_parts + (i_part.to(tl.int64) * blocks + i_block) * (H * W)
    p_out += o_h[:, None] * W + o_w[None, :]
    tl.store(p_out, acc, mask=m_h[:, None] & m_w[None, :])


def conv2d_backward(
    grad: Tensor, x: Tensor, values: Tensor, *rest: Any, **geometry: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Launches ``bsr_conv2d_backward``."""
    *index, wanted = rest
    shape = shape_of(x.shape[2:], **geometry)
    grads = pixels_of(grad)
    dx, dvalues = x.new_empty(0), values.new_empty(values.shape if wanted[1] else (0,))
    dbias = values.new_empty(grads.shape[3] if wanted[2] else 0)
    if wanted[0]:
        dx = images_of(_input_gradient(grads, x, values, index, shape), x)
    if dvalues.numel() > 0:
        _weight_gradient(grads, pixels_of(x), dvalues, index, shape)
    if dbias.numel() > 0:
        sum_rows(grads.view(-1, grads.shape[3]), dbias)
    return dx, dvalues, dbias


def _input_gradient(
    grads: Tensor, x: Tensor, values: Tensor, index: Sequence[Tensor], shape: Shape
) -> Tensor:
    """``dx`` as ``[N, H, W, C]``."""
    crow, _, crow_t, col_t, perm = index
    _, height, width = values.shape
    chunks = x.shape[1] // width
    dx = x.new_empty(x.shape[0], *shape.size, x.shape[1])
    if dx.numel() == 0:
        return dx
    taps = (crow_t.shape[0] - 1) // chunks
    steps = [triton.cdiv(shape.size[i], shape.stride[i]) for i in range(2)]
    pixels = x.shape[0] * steps[0] * steps[1]
    tile = pixel_tile(pixels, width, x.dtype)
    programs = triton.cdiv(pixels, tile.m) * chunks * triton.cdiv(width, tile.n)
    launch(
        input_gradient_kernel,
        (programs * shape.stride[0] * shape.stride[1],),
        *(grads, weights_for(x, values, pixels), dx),
        *(crow_t, col_t, perm, longest_first(crow_t, taps)),
        *(pixels, crow.shape[0] - 1, chunks, *shape.numbers, taps),
        warps=tile.warps,
        stages=tile.stages,
        H=height,
        W=width,
        BM=tile.m,
        BN=tile.n,
        BK=step_of(height, tile),
        GROUP=GROUP,
        PRECISION=precision_of(x.dtype),
    )
    return dx


def _weight_gradient(
    grads: Tensor, pixels: Tensor, dvalues: Tensor, index: Sequence[Tensor], shape: Shape
) -> None:
    """``dvalues`` over parts of the pixels that the shapes decide."""
    crow, col, _, col_t, perm = index
    blocks, height, width = dvalues.shape
    count = grads.shape[0] * shape.out[0] * shape.out[1]
    tile = block_tile(height, width, grads.dtype)
    programs = blocks * triton.cdiv(height, tile.h) * triton.cdiv(width, tile.w)
    part, parts = chunks_of(count, programs)
    out = dvalues
    if parts > 1:
        out = dvalues.new_empty(parts, *dvalues.shape, dtype=torch.float32)
    launch(
        weight_gradient_kernel,
        (programs * parts,),
        *(grads, pixels, out, col, col_t, perm, count, crow.shape[0] - 1),
        *(pixels.shape[3] // width, *shape.numbers, blocks, part, 1.0),
        warps=tile.warps,
        stages=tile.stages,
        H=height,
        W=width,
        BH=tile.h,
        BW=tile.w,
        BM=tile.m,
        PRECISION=precision_of(grads.dtype),
    )
    if parts > 1:
        sum_parts(out, dvalues)
