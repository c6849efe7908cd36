"""Constant fan-in: matrices with as many kept entries in every row, multiplied by csr's ops."""

from sparsekern.ops.condensed.index import build_index, fan_in, fan_in_of, row_counts, row_pointers

__all__ = ["build_index", "fan_in", "fan_in_of", "row_counts", "row_pointers"]
