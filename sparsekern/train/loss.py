"""The loss of a training step, and what it is when every token has a target."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def cross_entropy(logits: Tensor, y: Tensor, reduction: str = "mean") -> Tensor:
    """Cross entropy over all targets: one for each sample, or one for each token.

    Args:
        logits: ``[batch, classes]`` or ``[batch, tokens, classes]``.
        y: int64 ``[batch]`` or ``[batch, tokens]``.
        reduction: "mean" or "sum" over the targets.
    """
    return F.cross_entropy(logits.flatten(0, -2), y.flatten(), reduction=reduction)
