"""Masks: selecting, packing and applying them."""

from sparsekern.ops.mask.bits import apply_, count, pack_bits, unpack_bits
from sparsekern.ops.mask.block import block_any, block_sums, block_topk, expand_blocks
from sparsekern.ops.mask.conv2d import conv2d
from sparsekern.ops.mask.linear import linear
from sparsekern.ops.mask.topk import topk, topk_bits

__all__ = [
    "apply_",
    "block_any",
    "block_sums",
    "block_topk",
    "conv2d",
    "count",
    "expand_blocks",
    "linear",
    "pack_bits",
    "topk",
    "topk_bits",
    "unpack_bits",
]
