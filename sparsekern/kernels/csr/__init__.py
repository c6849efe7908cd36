"""Triton kernels of compressed rows: products, sampled products, dense copies, indices."""
