"""Autocast, as torch's own layers see it."""

from __future__ import annotations

import torch
from torch import Tensor


def as_under_autocast(x: Tensor) -> Tensor:
    """The input as ``nn.Linear`` and ``nn.Conv2d`` would take it: in autocast's dtype while it is
    on (float64 excepted, as in torch). Weights stay as they are; kernels take them in float32."""
    if not torch._C._is_any_autocast_enabled():  # PERF: 0.1 us, and what is nearly always so
        return x
    if not isinstance(x, Tensor) or x.device.type not in ("cpu", "cuda"):
        return x
    if not torch.is_autocast_enabled(x.device.type):
        return x
    if not x.is_floating_point() or x.dtype == torch.float64:
        return x
    return x.to(torch.get_autocast_dtype(x.device.type))
