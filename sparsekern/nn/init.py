"""Initialisation of sparse weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor


@torch.no_grad()
def sparse_fan_in_(weight: Tensor, mask: Tensor, gain: float = 1.0) -> Tensor:
    """Rescales the rows of a freshly initialised weight to their real fan-in, in place.

    A row with ``k`` of ``n`` weights kept is multiplied by ``gain * sqrt(n / k)``, so that the
    variance of its pre-activation is that of the dense layer. Empty rows are left alone.
    Source: Evci et al., Gradient Flow in Sparse Neural Networks, 2022, section 3.
    """
    kept = mask.flatten(1).sum(1).clamp(min=1).to(weight.dtype)
    scale = gain * torch.sqrt(mask.flatten(1).shape[1] / kept)
    return weight.mul_(scale.view(-1, *[1] * (weight.ndim - 1)))


@torch.no_grad()
def dense_linear_(weight: Tensor, bias: Tensor | None, generator: torch.Generator | None) -> None:
    """What ``torch.nn.Linear`` and ``Conv2d`` do: both uniform in ``+-1/sqrt(fan_in)``."""
    fan_in = math.prod(weight.shape[1:])
    bound = 1 / math.sqrt(fan_in) if fan_in > 0 else 0.0
    weight.uniform_(-bound, bound, generator=generator)
    if bias is not None:
        bias.uniform_(-bound, bound, generator=generator)
