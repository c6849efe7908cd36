"""Magnitude."""

from __future__ import annotations

import torch
from torch import Tensor


def magnitude(weight: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """``|w|``, float32 (float64 for float64 weights), of any shape."""
    return weight.abs() if weight.dtype == torch.float64 else weight.abs().float()
