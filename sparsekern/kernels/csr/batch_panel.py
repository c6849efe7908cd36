"""``panel[c, b] = x[b, c]``: activations with the batch innermost, so that gathers coalesce.

Formula: one entry of a row needs one channel of all rows of x. Roofline: read from x [B, I], each
  of these elements costs a sector of 32 bytes of the L2 cache; from a panel [I, B], its own 2 or 4.
  A panel costs one more read and write of x in device memory, an entry saves up to 30 bytes a row.
  Images are padded here, and spread apart where the product is a transposed one, so that the
  product needs no test of borders. Gradients are gated here by the output of a ReLU.
Thread mapping: one program copies BM channels of BN positions (rows, or pixels of all images).
Tile: [BM, BN], read in the order of x, written with positions innermost.
Accumulation: none, a copy.
Alignment: rows of the panel begin at multiples of 16 elements; addresses are int64.
Contract: sparsekern/ops/csr/linear.py and conv2d.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparsekern.kernels.launch import INTERPRETING, launch

Pair = tuple[int, int]
LONG = 2**31 - 2**16  # positions that may not fit an int32, a tile behind the last one included


@dataclass(frozen=True)
class Panel:
    """Numbers of many channels: element ``(c, n, h, w)`` is ``pitch c + image n + row h + w``
    behind the first; of a linear layer, ``(c, b)`` is ``pitch c + b`` behind it, and ``readable``
    positions may be read: zeros behind the last one, so that loads are wide up to there."""

    data: Tensor
    pitch: int
    readable: int = 0
    image: int = 0
    row: int = 0


@triton.jit
def panel_kernel(
    p_x,
    p_y,
    p_panel,
    channels,
    positions,
    pitch,
    x_n,
    x_c,
    x_h,
    x_w,
    y_n,
    y_c,
    pixels,
    width,
    height_in,
    width_in,
    low_h,
    low_w,
    step_h,
    step_w,
    IMAGES: tl.constexpr,
    LONG: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    tiles = tl.cdiv(channels, BM)
    i_m = tl.program_id(0) % tiles
    i_n = tl.program_id(0) // tiles
    o_m = i_m.to(tl.int64) * BM + tl.arange(0, BM)
    if LONG:  # int32 where it can be: 64 bits take several times as long to divide
        i_n = i_n.to(tl.int64)
    o_n = i_n * BN + tl.arange(0, BN)
    m_n = o_n < positions
    m_mn = (o_m < channels)[:, None] & m_n[None, :]
    if IMAGES:
        place = o_n % pixels
        h = place // width - low_h
        w = place % width - low_w
        high = h // step_h
        wide = w // step_w
        inside = (h >= 0) & (w >= 0) & (h % step_h == 0) & (w % step_w == 0)
        inside = inside & (high < height_in) & (wide < width_in)
        at = (o_n // pixels).to(tl.int64) * x_n
        at += high.to(tl.int64) * x_h + wide.to(tl.int64) * x_w
    else:
        inside = m_n
        at = o_n.to(tl.int64) * x_n
    m_x = m_mn & inside[None, :]
    b_x = tl.load(p_x + o_m[:, None] * x_c + at[None, :], mask=m_x, other=0.0)
    if p_y is not None:
        o_y = o_m[:, None] * y_c + (o_n.to(tl.int64) * y_n)[None, :]
        b_y = tl.load(p_y + o_y, mask=m_mn, other=1.0).to(tl.float32)
        b_x = tl.where(b_y <= 0, tl.zeros_like(b_x), b_x)  # NaN lets the gradient through
    m_panel = (o_m < channels)[:, None] & (o_n < pitch)[None, :]  # zeros behind the last position
    tl.store(p_panel + o_m[:, None] * pitch + o_n[None, :], b_x, mask=m_panel)


@triton.jit
def entry_kernel(
    p_col, p_offset, nnz, taps, width, pitch, origin, step_h, step_w, BM: tl.constexpr
):
    """Where in a panel of images an entry's numbers begin, from its channel and tap."""
    o_e = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
    col = tl.load(p_col + o_e, mask=o_e < nnz, other=0).to(tl.int64)
    tap = col % taps
    offset = col // taps * pitch + origin + tap // width * step_h + tap % width * step_w
    tl.store(p_offset + o_e, offset, mask=o_e < nnz)


@triton.jit
def pixel_kernel(p_place, positions, pixels, width, image, step_h, step_w, BN: tl.constexpr):
    """Where in a panel of images the numbers of an output pixel's first tap are."""
    o_n = tl.program_id(0).to(tl.int64) * BN + tl.arange(0, BN)
    inner = o_n % pixels
    place = o_n // pixels * image + inner // width * step_h + inner % width * step_w
    tl.store(p_place + o_n, place, mask=o_n < positions)


def config(channels: int, positions: int, images: bool = False) -> Pair:
    """Channels and positions of a tile of :func:`panel_kernel`."""
    if INTERPRETING:  # a program costs the interpreter much the same whatever its size
        power = triton.next_power_of_2
        return min(256, power(max(channels, 1))), min(1024, power(max(positions, 1)))
    return (16, 64) if images else (32, 32)


def panel_of_rows(x: Tensor, y: Tensor | None = None) -> Panel:
    """The panel ``[I, B]`` of rows ``[B, I]``, zero where ``y`` of the same shape is 0 or below.

    No copy is made of one row, nor where the batch is innermost already.
    """
    batch, channels = x.shape
    if y is None and (batch == 1 or (x.stride(0) == 1 and x.stride(1) >= batch)):
        return Panel(x, x.stride(1), batch)
    pitch = -(-batch // 16) * 16
    data = x.new_empty(channels, pitch)
    bm, bn = config(channels, batch)
    grid = (triton.cdiv(channels, bm) * triton.cdiv(pitch, bn),)
    y_n, y_c = (0, 0) if y is None else y.stride()
    sizes = (channels, batch, pitch, *x.stride(), 0, 0, y_n, y_c, *[1] * 8)
    options = {"IMAGES": False, "LONG": pitch >= LONG, "BM": bm, "BN": bn}
    launch(panel_kernel, grid, x, y, data, *sizes, **options)
    return Panel(data, pitch, pitch)


def panel_of_images(
    x: Tensor, size: Pair, low: Pair = (0, 0), step: Pair = (1, 1), packed: bool = False
) -> Panel:
    """The panel ``[C, N, *size]`` of images ``[N, C, H, W]``: pixel ``(h, w)`` of ``x`` is at
    ``(low[0] + step[0] h, low[1] + step[1] w)``, all else is zero.

    No copy is made where nothing moves and pixels are innermost already; ``packed`` asks for all
    images of a channel without a gap.
    """
    count, channels, height, width = x.shape
    fits = size[0] <= height and size[1] <= width and not packed
    if low == (0, 0) and step == (1, 1) and fits and x.stride(3) == 1:
        return Panel(x, x.stride(1), 0, x.stride(0), x.stride(2))
    pixels = math.prod(size)
    pitch = -(-count * pixels // 16) * 16
    data = x.new_empty(channels, pitch)
    bm, bn = config(channels, count * pixels, images=True)
    grid = (triton.cdiv(channels, bm) * triton.cdiv(pitch, bn),)
    sizes = (channels, count * pixels, pitch, *x.stride(), 0, 0, pixels, size[1], height, width)
    options = {"IMAGES": True, "LONG": pitch >= LONG, "BM": bm, "BN": bn}
    launch(panel_kernel, grid, x, None, data, *sizes, *low, *step, **options)
    return Panel(data, pitch, pitch, pixels, size[1])


def entry_offsets(col: Tensor, kernel: Pair, panel: Panel, origin: int, steps: Pair) -> Tensor:
    """``[nnz]`` int64: ``col`` is ``(channel kh + ky) kw + kx``; a tap moves by ``steps``."""
    offsets = col.new_empty(col.shape, dtype=torch.int64)
    numbers = (col.numel(), math.prod(kernel), kernel[1], panel.pitch, origin, *steps)
    launch(entry_kernel, (triton.cdiv(col.numel(), 1024),), col, offsets, *numbers, BM=1024)
    return offsets


def pixel_places(count: int, size: Pair, panel: Panel, stride: Pair) -> Tensor:
    """``[N H' W']`` int64: where the panel is read for each pixel of outputs ``size``."""
    positions = count * math.prod(size)
    places = panel.data.new_empty(positions, dtype=torch.int64)
    steps = (panel.image, panel.row * stride[0], stride[1])
    numbers = (positions, math.prod(size), size[1], *steps)
    launch(pixel_kernel, (triton.cdiv(positions, 1024),), places, *numbers, BN=1024)
    return places
