"""Masks: selecting, packing and applying them."""

from sparsekern.ops.mask.bits import apply_, pack_bits, unpack_bits
from sparsekern.ops.mask.conv2d import conv2d
from sparsekern.ops.mask.linear import linear
from sparsekern.ops.mask.topk import topk

__all__ = ["apply_", "conv2d", "linear", "pack_bits", "topk", "unpack_bits"]
