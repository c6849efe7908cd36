"""Constant fan-in: matrices with as many kept entries in every row."""

from sparsekern.ops.condensed.index import (
    build_index,
    fan_in,
    fan_in_of,
    row_counts,
    row_pointers,
)
from sparsekern.ops.condensed.linear import linear

__all__ = ["build_index", "fan_in", "fan_in_of", "linear", "row_counts", "row_pointers"]
