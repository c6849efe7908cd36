"""``bits[b] = sum_j mask[8 b + j] << j``: masks packed to one bit a weight, and what reads them.

Thread mapping: one program packs BLOCK bytes; the others take BLOCK elements or bytes.
Tile: BLOCK bytes of the result and 8 BLOCK flags; else BLOCK elements.
Accumulation: int32 in a tile, int64 over all (integer atomics: the order does not matter).
Alignment: none asked for; addresses are int64.
Contract: sparsekern/ops/mask/bits.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparsekern.kernels.launch import launch

BLOCK = 256
ELEMENTS = 2048  # of a program that reads or writes elements
BYTES = 8192  # of a program that counts


@triton.jit
def pack_kernel(p_mask, p_bits, numel, BLOCK: tl.constexpr):
    o_byte = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    o_bit = tl.arange(0, 8)
    o_flag = o_byte[:, None] * 8 + o_bit[None, :]
    flags = tl.load(p_mask + o_flag, mask=o_flag < numel, other=0).to(tl.int32)
    packed = tl.sum(flags << o_bit[None, :], axis=1)
    tl.store(p_bits + o_byte, packed.to(tl.uint8), mask=o_byte * 8 < numel)


@triton.jit
def flag_of(p_mask, o_element, m_element, PACKED: tl.constexpr):
    """0 or 1 for each element: of a byte a flag, or of a bit a flag (PACKED)."""
    if PACKED:
        byte = tl.load(p_mask + o_element // 8, mask=m_element, other=0).to(tl.int32)
        return (byte >> (o_element % 8).to(tl.int32)) & 1
    return tl.load(p_mask + o_element, mask=m_element, other=0).to(tl.int32)


@triton.jit
def unpack_kernel(p_bits, p_mask, numel, BLOCK: tl.constexpr):
    o_flag = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    m_flag = o_flag < numel
    flag = flag_of(p_bits, o_flag, m_flag, True)
    tl.store(p_mask + o_flag, flag.to(tl.uint8), mask=m_flag)


@triton.jit
def apply_kernel(p_x, p_bits, numel, BLOCK: tl.constexpr):
    """Stores the zeros alone: what is kept is neither read nor written."""
    o_x = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    m_x = o_x < numel
    flag = flag_of(p_bits, o_x, m_x, True)
    zero = tl.zeros((BLOCK,), p_x.dtype.element_ty)
    tl.store(p_x + o_x, zero, mask=m_x & (flag == 0))


@triton.jit
def count_kernel(p_bits, p_count, numel, BLOCK: tl.constexpr):
    """Set bits of bytes, so flags of one byte count as they are."""
    o_byte = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    byte = tl.load(p_bits + o_byte, mask=o_byte < numel, other=0).to(tl.int32)
    byte = byte - ((byte >> 1) & 0x55)
    byte = (byte & 0x33) + ((byte >> 2) & 0x33)
    ones = (byte & 0x0F) + (byte >> 4)
    tl.atomic_add(p_count, tl.sum(ones, axis=0).to(tl.int64), sem="relaxed")


def pack_bits(mask: Tensor) -> Tensor:
    """Launches ``mask_pack_bits``."""
    flat = mask.contiguous().view(-1).view(torch.uint8)
    bits = flat.new_empty((flat.numel() + 7) // 8)
    grid = (triton.cdiv(bits.numel(), BLOCK),)
    launch(pack_kernel, grid, flat, bits, flat.numel(), BLOCK=BLOCK)
    return bits


def unpack_bits(bits: Tensor, shape: Sequence[int]) -> Tensor:
    """Launches ``mask_unpack_bits``."""
    flags = bits.new_empty(shape)
    grid = (triton.cdiv(flags.numel(), ELEMENTS),)
    launch(unpack_kernel, grid, bits.contiguous(), flags, flags.numel(), BLOCK=ELEMENTS)
    return flags.view(torch.bool)


def apply_(x: Tensor, bits: Tensor) -> None:
    """Launches ``mask_apply_``."""
    grid = (triton.cdiv(x.numel(), ELEMENTS),)
    launch(apply_kernel, grid, x, bits.contiguous(), x.numel(), BLOCK=ELEMENTS)


def count(mask: Tensor) -> Tensor:
    """Launches ``mask_count``."""
    flat = mask.contiguous().view(-1).view(torch.uint8)
    ones = flat.new_zeros((), dtype=torch.int64)
    grid = (triton.cdiv(flat.numel(), BYTES),)
    launch(count_kernel, grid, flat, ones, flat.numel(), BLOCK=BYTES, warps=8)
    return ones
