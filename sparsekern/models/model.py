"""``Model``: the configuration that builds a network."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import nn

from sparsekern._registry import Registry

MODELS: Registry[type[Model]] = Registry("model")


@dataclass(frozen=True, kw_only=True)
class Model(ABC):
    """A network: a frozen configuration, its fields are a recipe's options.

    Args:
        width: factor on the sizes of all hidden layers, above 0. The smaller dense network that
            a sparse one is compared with is the same configuration with another width.
    """

    width: float = 1.0

    def __post_init__(self) -> None:
        if not self.width > 0:
            raise ValueError(f"Expected width to be above 0. Got {self.width}.")

    @abstractmethod
    def build(self, input_shape: tuple[int, ...], classes: int) -> nn.Module:
        """The network for samples of this shape, initialised from torch's global generator."""

    def scaled(self, size: int) -> int:
        """The hidden size ``size`` at this width, at least 1."""
        return max(1, round(size * self.width))
