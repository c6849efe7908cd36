"""Triton kernels of the ops in sparsekern/ops/bsr."""
