"""Triton kernels of masks: bits, the k largest scores."""
