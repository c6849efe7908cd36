"""``y = activation(z)`` on a float32 tile, for kernels that apply it before they store.

Thread mapping: the caller's tile, element by element.
Tile: the caller's.
Accumulation: float32.
Alignment: none asked for.
Contract: sparsekern/ops/_activation.py.
"""

from __future__ import annotations

import triton
import triton.language as tl

CODES = {"none": 0, "relu": 1, "gelu": 2, "gelu_tanh": 3}


@triton.jit
def activated(z, code):
    """``code`` is one of CODES: a number, or a constant where the kernel prefers it."""
    if code == 1:
        z = tl.where(z < 0, 0.0, z)  # as in torch, NaN stays
    elif code == 2:
        z = 0.5 * z * (1.0 + tl.erf(z * 0.7071067811865476))
    elif code == 3:
        # (1 + tanh(u)) / 2 = sigmoid(2 u): no cancellation where tanh(u) is near -1
        u = 0.7978845608028654 * (z + 0.044715 * z * z * z)
        z = z / (1.0 + tl.exp(-2.0 * u))
    return z
