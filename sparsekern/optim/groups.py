"""Parameter groups for weight decay."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from sparsekern._checks import check_model
from sparsekern.formats import SparseFormat


def param_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """The usual split: weights decay, biases and norms do not.

    The common filter ``p.ndim < 2`` would silently take the weight decay away from the
    one-dimensional values of compact formats; here every format's parameter counts as a weight.

    Returns:
        Two groups for a torch optimiser: with ``weight_decay``, and with 0.
    """
    check_model(model)
    if isinstance(weight_decay, bool) or not isinstance(weight_decay, (int, float)):
        raise TypeError(f"Expected weight_decay to be a number. Got {weight_decay!r}.")
    if not 0 <= weight_decay < math.inf:
        raise ValueError(f"Expected weight_decay to be at least 0 and finite. Got {weight_decay}.")
    weights = {
        id(module.parameter) for module in model.modules() if isinstance(module, SparseFormat)
    }
    decay: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for parameter in model.parameters():
        if parameter.requires_grad:
            (decay if id(parameter) in weights or parameter.ndim >= 2 else plain).append(parameter)
    return [
        {"params": decay, "weight_decay": weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
