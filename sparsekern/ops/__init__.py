"""Ops: one mathematical sentence per file, one family per folder.

``csr.linear`` in Python is ``torch.ops.sparsekern.csr_linear``; its CPU kernel is
``csrc/cpu/csr/linear.cpp``.
"""

from sparsekern.ops import bsr, condensed, csr, mask, update
from sparsekern.ops._define import OPS, Cost, Op, Sample, Variant

__all__ = ["OPS", "Cost", "Op", "Sample", "Variant", "bsr", "condensed", "csr", "mask", "update"]
