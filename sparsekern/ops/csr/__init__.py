"""Compressed sparse rows: any mask, one value and one column index per kept weight."""

from sparsekern.ops.csr.conv2d import conv2d
from sparsekern.ops.csr.dense import gather, to_dense
from sparsekern.ops.csr.from_mask import from_mask
from sparsekern.ops.csr.index import CsrIndex, build_index, index_from_mask
from sparsekern.ops.csr.linear import linear
from sparsekern.ops.csr.move import move_
from sparsekern.ops.csr.panel_starts import panel_starts
from sparsekern.ops.csr.position_map import position_map
from sparsekern.ops.csr.rebuild import rebuild_
from sparsekern.ops.csr.transpose import transpose

__all__ = [
    "CsrIndex",
    "build_index",
    "conv2d",
    "from_mask",
    "gather",
    "index_from_mask",
    "linear",
    "move_",
    "panel_starts",
    "position_map",
    "rebuild_",
    "to_dense",
    "transpose",
]
