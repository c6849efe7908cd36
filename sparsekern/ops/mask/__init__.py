"""Masks: selecting, packing and applying them."""

from sparsekern.ops.mask.bits import apply_, count, pack_bits, unpack_bits
from sparsekern.ops.mask.conv2d import conv2d
from sparsekern.ops.mask.linear import linear
from sparsekern.ops.mask.topk import topk, topk_bits
from sparsekern.ops.mask.topk_rows import topk_rows

__all__ = [
    "apply_",
    "conv2d",
    "count",
    "linear",
    "pack_bits",
    "topk",
    "topk_bits",
    "topk_rows",
    "unpack_bits",
]
