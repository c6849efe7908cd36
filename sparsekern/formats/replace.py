"""Parameters that change their shape: the object stays, so an optimiser that holds it does too."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def check_no_graph(parameter: nn.Parameter, shape: torch.Size) -> None:
    """Raises RuntimeError if a graph is alive that keeps the parameter from taking this shape."""
    if parameter.shape == shape or not parameter.requires_grad:
        return
    old = parameter.data
    parameter.data = old.new_zeros(()).expand(shape)
    with torch.enable_grad():
        accumulator = parameter.expand_as(parameter).grad_fn.next_functions[0][0]  # type: ignore[union-attr]
    parameter.data = old
    if tuple(accumulator._input_metadata[0].shape) != tuple(shape):  # type: ignore[union-attr]
        raise RuntimeError(
            f"Expected no graph of an earlier step to be alive while a parameter changes its "
            f"shape from {tuple(old.shape)} to {tuple(shape)}. Got one: delete the last "
            "loss and outputs first (del loss)."
        )


def replace_data(parameter: nn.Parameter, data: Tensor) -> None:
    """``parameter.data = data``, possibly of another shape; drops the gradient.

    Raises RuntimeError, with nothing changed, when a graph of an earlier forward pass is still
    alive: autograd remembers the old shape in it and would refuse the next gradient
    (:func:`check_no_graph`).
    """
    check_no_graph(parameter, data.shape)
    parameter.data = data
    parameter.grad = None
