"""A convolution with kept blocks as products over channels-last pixels.

Thread mapping: a program a tile of pixels in a row of blocks.
Tile: BM pixels x BN channels; BK channels of one tap a step, gathered from x as they lie.
Accumulation: float32, tl.dot on tensor cores in the dtype of x (float32: IEEE, or TF32 if allowed).
Alignment: chunks of 16 channels are vectors of 32 bytes and more; addresses are int64.
Contract: sparsekern/ops/bsr/conv2d.py. No im2col: a tile's pixels are read once a kept block, from
L2, as in kernels/bsr/linear.py. Gradients: conv2d_backward.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparsekern.kernels.bsr.linear import (
    Tile,
    precision_of,
    tile_of,
    weights_for,
)
from sparsekern.kernels.bsr.schedule import GROUP, longest_first, place
from sparsekern.kernels.launch import launch

_Pair = Sequence[int]


@triton.jit
def split_pixel(o_m, height, width):
    """Image, row and column of each pixel."""
    o_row = o_m // width
    return o_row // height, o_row % height, o_m % width


@triton.jit
def convolve_kernel(
    p_x,
    p_values,
    p_bias,
    p_y,
    p_crow,
    p_col,
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
    H: tl.constexpr,
    W: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    GROUP: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """y [M, rows H] of x [images, size_y, size_x, chunks W]."""
    TILES: tl.constexpr = (H + BN - 1) // BN
    program = tl.program_id(0)
    i_row, i_tile, i_m = place(program, p_order, tl.cdiv(M, BM), rows * TILES, TILES, GROUP)
    start = tl.load(p_crow + i_row)
    kept = (tl.load(p_crow + i_row + 1) - start) * W
    o_m = i_m.to(tl.int32) * BM + tl.arange(0, BM)
    o_n = i_tile * BN + tl.arange(0, BN)
    o_k = tl.arange(0, BK)
    m_m = o_m < M
    m_n = o_n < H
    o_image, o_y, o_x = split_pixel(o_m, out_y, out_x)
    o_y = o_y * stride_y - padding_y
    o_x = o_x * stride_x - padding_x
    o_image = o_image.to(tl.int64) * size_y
    acc = tl.zeros([BM, BN], tl.float32)
    for at in range(0, kept, BK):
        i_block = start + at // W
        i_column = tl.load(p_col + i_block)
        i_tap = i_column // chunks
        o_inside = tl.max_contiguous(tl.multiple_of(at % W + o_k, BK), BK)
        o_channel = i_column % chunks * W + o_inside
        o_in_y = o_y + i_tap // kernel_x * dilation_y
        o_in_x = o_x + i_tap % kernel_x * dilation_x
        inside = m_m & (o_in_y >= 0) & (o_in_y < size_y) & (o_in_x >= 0) & (o_in_x < size_x)
        o_pixel = (o_image + o_in_y) * size_x + o_in_x
        p_in = p_x + o_pixel[:, None] * (chunks * W) + o_channel[None, :]
        b_x = tl.load(p_in, mask=inside[:, None], other=0)
        o_weight = i_block.to(tl.int64) * (H * W) + o_inside
        p_w = p_values + o_weight[:, None] + o_n[None, :] * W
        b_w = tl.load(p_w, mask=m_n[None, :], other=0)
        acc = tl.dot(b_x, b_w.to(b_x.dtype), acc, input_precision=PRECISION)
    o_out = i_row.to(tl.int64) * H + o_n
    if p_bias is not None:
        acc += tl.load(p_bias + o_out, mask=m_n, other=0).to(tl.float32)[None, :]
    p_out = p_y + o_m.to(tl.int64)[:, None] * (rows * H) + o_out[None, :]
    tl.store(p_out, acc.to(p_y.dtype.element_ty), mask=m_m[:, None] & m_n[None, :])


class Shape(NamedTuple):
    """What the kernels are told of a convolution, in the order of their parameters."""

    size: _Pair
    out: _Pair
    kernel_x: int
    stride: _Pair
    padding: _Pair
    dilation: _Pair

    @property
    def numbers(self) -> tuple[int, ...]:
        pairs = (*self.size, *self.out, self.kernel_x)
        return (*pairs, *self.stride, *self.padding, *self.dilation)


def shape_of(
    size: _Pair,
    *,
    kernel_size: _Pair,
    stride: _Pair = (1, 1),
    padding: _Pair = (0, 0),
    dilation: _Pair = (1, 1),
    groups: int = 1,
) -> Shape:
    """The sizes for images of ``size``; one group."""
    out = [
        (size[i] + 2 * padding[i] - dilation[i] * (kernel_size[i] - 1) - 1) // stride[i] + 1
        for i in range(2)
    ]
    return Shape(tuple(size), out, kernel_size[1], stride, padding, dilation)


def pixel_tile(pixels: int, side: int, dtype: torch.dtype) -> Tile:
    """As for linear layers, but pixels' places take registers: half as many in float32, more warps
    in 16 bits."""
    tile = tile_of(pixels, side, dtype)
    if dtype == torch.float32:
        return tile._replace(m=min(tile.m, 32))
    return tile._replace(warps=8) if tile.m * tile.n >= 128 * 64 else tile


def step_of(side: int, tile: Tile) -> int:
    """Channels a step: all of one block, so that they have one tap."""
    return min(side & -side, tile.k)


def pixels_of(x: Tensor) -> Tensor:
    """``[N, C, H, W]`` as a contiguous ``[N, H, W, C]``; no copy if x is channels_last."""
    return x.permute(0, 2, 3, 1).contiguous()


def images_of(y: Tensor, x: Tensor) -> Tensor:
    """A contiguous ``[N, H, W, C]`` as images of the memory format that the op promises for ``x``:
    NCHW, or channels_last like an ``x`` that is so and not on the CPU."""
    last = not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    images = y.permute(0, 3, 1, 2)
    return images if last and x.device.type != "cpu" else images.contiguous()


def conv2d(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    probe: Tensor | None,
    *index: Tensor,
    **geometry: Any,
) -> Tensor:
    """Launches ``bsr_conv2d``; ``probe`` is zeros."""
    crow, col, *_ = index
    shape = shape_of(x.shape[2:], **geometry)
    _, height, width = values.shape
    rows = crow.shape[0] - 1
    y = x.new_empty(x.shape[0], *shape.out, rows * height)
    if y.numel() > 0:
        pixels = y.numel() // y.shape[3]
        tile = pixel_tile(pixels, height, x.dtype)
        weights = weights_for(x, values, pixels)
        launch(
            convolve_kernel,
            (triton.cdiv(pixels, tile.m) * rows * triton.cdiv(height, tile.n),),
            *(pixels_of(x), weights, bias, y, crow, col, longest_first(crow)),
            *(pixels, rows, x.shape[1] // width, *shape.numbers),
            warps=tile.warps,
            stages=tile.stages,
            H=height,
            W=width,
            BM=tile.m,
            BN=tile.n,
            BK=step_of(width, tile),
            GROUP=GROUP,
            PRECISION=precision_of(x.dtype),
        )
    return images_of(y, x)
