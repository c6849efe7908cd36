"""Random scores."""

from __future__ import annotations

import torch
from torch import Tensor


def random(weight: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Uniform in [0, 1), drawn on the CPU so that every device sees the same mask."""
    return torch.rand(weight.shape, generator=generator).to(weight.device)
