"""Block compressed rows: dense blocks of one shape, one column index per kept block."""

from sparsekern.ops.bsr.dense import gather, to_dense
from sparsekern.ops.bsr.index import (
    BsrIndex,
    block_mask,
    build_index,
    check_block_shape,
    element_positions,
    index_from_mask,
)
from sparsekern.ops.bsr.linear import linear

__all__ = [
    "BsrIndex",
    "block_mask",
    "build_index",
    "check_block_shape",
    "element_positions",
    "gather",
    "index_from_mask",
    "linear",
    "to_dense",
]
