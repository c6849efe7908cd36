"""Activations that layer ops can apply to their outputs before they are stored."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

ACTIVATIONS = ("none", "relu", "gelu", "gelu_tanh")

_APPROXIMATE = {"gelu": "none", "gelu_tanh": "tanh"}  # as torch calls them


def check_activation(value: object) -> None:
    """Raises ValueError unless it is one of ``ACTIVATIONS``."""
    if value not in ACTIVATIONS:
        raise ValueError(f"Expected activation to be {_listed()}. Got {value!r}.")


def _listed() -> str:
    return ", ".join(ACTIVATIONS[:-1]) + f" or {ACTIVATIONS[-1]}"


def activate(z: Tensor, activation: str) -> Tensor:
    """The activation of a tensor of one's own, in place where no gradient needs the input."""
    check_activation(activation)
    if activation == "none":
        return z
    if activation == "relu":
        return z.relu_()
    return F.gelu(z, approximate=_APPROXIMATE[activation])


def activation_gradient(grad: Tensor, activation: str, z: Tensor) -> Tensor:
    """The gradient of GELU's input ``z`` from that of its output."""
    return torch.ops.aten.gelu_backward(grad, z, approximate=_APPROXIMATE[activation])


def is_gelu(activation: str) -> bool:
    """Whether the gradient needs the input, which a fused call does not keep."""
    return activation in _APPROXIMATE


def wants_gradient(x: Tensor, values: Tensor, bias: Tensor | None, probe: Tensor | None) -> bool:
    """Whether a call with these inputs is recorded for a backward pass."""
    if not torch.is_grad_enabled():
        return False
    if values.requires_grad or x.requires_grad:
        return True
    return any(t is not None and t.requires_grad for t in (bias, probe))
