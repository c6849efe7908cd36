"""Triton kernels, one file per op: kernels and one launcher; no autograd, no registration.

Kernel files import Triton, so nothing here imports them: :class:`launch.Launcher` does, at the
first call. Contracts are written where the ops are defined, in :mod:`sparsekern.ops`.
"""
