"""Per-weight optimiser state that follows a change of topology."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer

from sparsekern.formats import TopologyChange


@torch.no_grad()
def move_state(optimizer: Optimizer, parameter: nn.Parameter, change: TopologyChange) -> list[str]:
    """Moves the state of one parameter: kept weights keep theirs, grown ones start at zero.

    Works for every optimiser that keeps tensors shaped like the parameter (momentum of SGD, both
    moments of Adam, ...). The history of LBFGS, one for all weights, starts anew: it describes
    the curvature between the old weights. Call it after the format's ``set_mask``.

    Returns:
        Names of state tensors of another shape, which were left as they are.
    """
    if restart_history(optimizer):
        return []
    state = optimizer.state.get(parameter, {})
    old_numel = parameter.numel() if change.old_numel is None else change.old_numel
    left = []
    for key, value in state.items():
        if not isinstance(value, Tensor) or value.ndim == 0:
            continue
        if value.numel() != old_numel:
            left.append(key)
            continue
        if value.numel() == parameter.numel():
            change.move_(value)
        else:
            state[key] = change.move(value)
    return left


def reset_state(optimizer: Optimizer, parameter: nn.Parameter) -> bool:
    """Forgets the state of a parameter whose shape has changed. Returns whether there was any."""
    if restart_history(optimizer):
        return True
    if optimizer.state.get(parameter):
        optimizer.state[parameter] = {}
        return True
    return False


def restart_history(optimizer: Optimizer) -> bool:
    """Forgets what an LBFGS, or a class derived from it, keeps about all weights in common.
    Returns whether the optimiser is one."""
    if not isinstance(optimizer, LBFGS):
        return False
    optimizer.state.clear()
    optimizer._numel_cache = None
    return True


def check_holds(optimizer: Optimizer, weights: Mapping[str, nn.Parameter]) -> None:
    """Raises ValueError unless the optimiser holds all weights, given by the layers' names."""
    held = {id(each) for group in optimizer.param_groups for each in group["params"]}
    for name, weight in weights.items():
        if id(weight) not in held:
            raise ValueError(
                f"Expected optimizer to hold the weights of all layers to prune. Got one without "
                f"that of {name}: build it over the model's parameters, or exclude the layer."
            )


def state_bytes(optimizer: Optimizer, parameter: nn.Parameter | None = None) -> int:
    """Bytes of the state tensors of one parameter, or of all."""
    states = optimizer.state.values() if parameter is None else [optimizer.state.get(parameter, {})]
    return sum(
        value.nbytes for state in states for value in state.values() if isinstance(value, Tensor)
    )
