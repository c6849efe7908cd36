"""Triton kernels of compressed rows: products, sampled products, scatter, gather, index building."""
