"""Optimisers that a recipe can name: frozen configurations that build torch's own, or ours."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import nn

from sparsekern import optim
from sparsekern._checks import check_fraction
from sparsekern._registry import Registry
from sparsekern.optim import param_groups

OPTIMIZERS: Registry[type[Optimizer]] = Registry("optimizer")


@dataclass(frozen=True, kw_only=True)
class Optimizer(ABC):
    """Configuration of a torch optimiser.

    Args:
        lr: learning rate that the schedule multiplies, above 0.
        weight_decay: of weights, at least 0; biases and norms never decay.
    """

    lr: float
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.lr < math.inf:
            raise ValueError(f"Expected lr to be above 0 and finite. Got {self.lr}.")
        if not self.weight_decay >= 0:
            raise ValueError(f"Expected weight_decay to be at least 0. Got {self.weight_decay}.")

    @abstractmethod
    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        """The optimiser over all parameters of the model, which is still dense."""


@dataclass(frozen=True, kw_only=True)
class SGD(Optimizer):
    """Stochastic gradient descent.

    Args:
        lr, weight_decay: see :class:`Optimizer`.
        momentum: in [0, 1].
        nesterov: Nesterov's momentum, which needs a momentum above 0.
    """

    momentum: float = 0.0
    nesterov: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fraction(self.momentum, "momentum")
        if self.nesterov and self.momentum == 0:
            raise ValueError("Expected momentum to be above 0 for nesterov. Got 0.")

    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(
            param_groups(model, self.weight_decay),
            lr=self.lr,
            momentum=self.momentum,
            nesterov=self.nesterov,
        )


@dataclass(frozen=True, kw_only=True)
class AdamW(Optimizer):
    """Adam with decoupled weight decay.

    Args:
        lr, weight_decay: see :class:`Optimizer`.
        betas: decay rates of the two moments, both in [0, 1).
        eps: added to the denominator, at least 0.
    """

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def __post_init__(self) -> None:
        super().__post_init__()
        if not all(0.0 <= beta < 1.0 for beta in self.betas):
            raise ValueError(f"Expected betas to be in [0, 1). Got {list(self.betas)}.")
        if not self.eps >= 0:
            raise ValueError(f"Expected eps to be at least 0. Got {self.eps}.")

    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.AdamW(
            param_groups(model, self.weight_decay), lr=self.lr, betas=self.betas, eps=self.eps
        )


def check_clip_norm(clip_norm: float | None) -> None:
    """Raises ValueError unless it is None or above 0."""
    if clip_norm is not None and not 0 < clip_norm < math.inf:
        raise ValueError(f"Expected clip_norm to be above 0 and finite. Got {clip_norm}.")


@dataclass(frozen=True, kw_only=True)
class MaskedSGD(SGD):
    """SGD that knows the masks of dense masters: one pass over weights, gradients and state.

    Args:
        lr, weight_decay, momentum, nesterov: see :class:`SGD`.
        clip_norm: largest norm of all kept gradients together; null: no limit.
    """

    clip_norm: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_clip_norm(self.clip_norm)

    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        return optim.MaskedSGD(
            param_groups(model, self.weight_decay),
            lr=self.lr,
            momentum=self.momentum,
            nesterov=self.nesterov,
            model=model,
            clip_norm=self.clip_norm,
        )


@dataclass(frozen=True, kw_only=True)
class MaskedAdamW(AdamW):
    """AdamW that knows the masks of dense masters: one pass over weights, gradients and state.

    Args:
        lr, weight_decay, betas, eps: see :class:`AdamW`.
        clip_norm: largest norm of all kept gradients together; null: no limit.
    """

    clip_norm: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_clip_norm(self.clip_norm)

    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        return optim.MaskedAdamW(
            param_groups(model, self.weight_decay),
            lr=self.lr,
            betas=self.betas,
            eps=self.eps,
            model=model,
            clip_norm=self.clip_norm,
        )


OPTIMIZERS.add("sgd", SGD)
OPTIMIZERS.add("adamw", AdamW)
OPTIMIZERS.add("masked_sgd", MaskedSGD)
OPTIMIZERS.add("masked_adamw", MaskedAdamW)
