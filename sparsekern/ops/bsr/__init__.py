"""Block compressed rows: dense blocks of one shape, one column index per kept block."""

from sparsekern.ops.bsr._variants import triton_density
from sparsekern.ops.bsr.conv2d import conv2d
from sparsekern.ops.bsr.dense import gather, to_dense
from sparsekern.ops.bsr.index import (
    BsrIndex,
    as_matrix,
    block_mask,
    build_index,
    element_positions,
    from_matrix,
    index_from_mask,
    split,
)
from sparsekern.ops.bsr.linear import linear
from sparsekern.ops.bsr.select import block_any, block_sums, block_topk, expand_blocks

__all__ = [
    "BsrIndex",
    "as_matrix",
    "block_any",
    "block_mask",
    "block_sums",
    "block_topk",
    "build_index",
    "conv2d",
    "element_positions",
    "expand_blocks",
    "from_matrix",
    "gather",
    "index_from_mask",
    "linear",
    "split",
    "to_dense",
    "triton_density",
]
