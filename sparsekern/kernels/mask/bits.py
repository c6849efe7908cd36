"""``bits[b] = sum_j mask[8 b + j] << j``: masks packed to one bit a weight.

Thread mapping: one program packs BLOCK bytes.
Tile: BLOCK bytes of the result, 8 BLOCK flags.
Accumulation: int32.
Alignment: none asked for; addresses are int64.
Contract: sparsekern/ops/mask/bits.py.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparsekern.kernels.launch import launch

BLOCK = 256


@triton.jit
def pack_kernel(p_mask, p_bits, numel, BLOCK: tl.constexpr):
    o_byte = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    o_bit = tl.arange(0, 8)
    o_flag = o_byte[:, None] * 8 + o_bit[None, :]
    flags = tl.load(p_mask + o_flag, mask=o_flag < numel, other=0).to(tl.int32)
    packed = tl.sum(flags << o_bit[None, :], axis=1)
    tl.store(p_bits + o_byte, packed.to(tl.uint8), mask=o_byte * 8 < numel)


def pack_bits(mask: Tensor) -> Tensor:
    """Launches ``mask_pack_bits``."""
    flat = mask.contiguous().view(-1).view(torch.uint8)
    bits = flat.new_empty((flat.numel() + 7) // 8)
    grid = (triton.cdiv(bits.numel(), BLOCK),)
    launch(pack_kernel, grid, flat, bits, flat.numel(), BLOCK=BLOCK)
    return bits
