"""Triton kernels of compressed rows."""
