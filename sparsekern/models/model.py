"""``Model``: the configuration that builds a network."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from sparsekern._registry import Registry

MODELS: Registry[type[Model]] = Registry("model")


@dataclass(frozen=True, kw_only=True)
class Model(ABC):
    """A network: a frozen configuration, its fields are a recipe's options.

    A subclass says what it takes (``samples``, :meth:`fits`), whether its logits are one row for
    each token (``per_token``), and makes the network (:meth:`network`).

    Args:
        width: factor on the sizes of all hidden layers, above 0. The smaller dense network that
            a sparse one is compared with is the same configuration with another width.
    """

    width: float = 1.0

    samples: ClassVar[str]  # what the network takes, for error sentences
    per_token: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not self.width > 0:
            raise ValueError(f"Expected width to be above 0. Got {self.width}.")

    def build(
        self,
        input_shape: tuple[int, ...],
        classes: int,
        *,
        vocabulary: int | None = None,
        per_token: bool = False,
    ) -> nn.Module:
        """The network for a dataset, initialised from torch's global generator.

        Args:
            input_shape: of one sample.
            classes: number of logits.
            vocabulary: number of different tokens; None: samples are numbers.
            per_token: whether every token has a label.

        Raises:
            ValueError: the network cannot be trained on such data.
        """
        if not self.fits(input_shape, vocabulary):
            kind = "numbers" if vocabulary is None else "tokens"
            raise ValueError(
                f"Expected the data of this model to be {self.samples}. "
                f"Got {kind} of shape {list(input_shape)}."
            )
        if per_token != self.per_token:
            wanted, got = ("token", "sample") if self.per_token else ("sample", "token")
            raise ValueError(
                f"Expected data with a label for each {wanted} for this model. "
                f"Got one for each {got}."
            )
        return self.network(input_shape, classes, vocabulary)

    @abstractmethod
    def fits(self, input_shape: tuple[int, ...], vocabulary: int | None) -> bool:
        """Whether the network can take such samples."""

    @abstractmethod
    def network(
        self, input_shape: tuple[int, ...], classes: int, vocabulary: int | None
    ) -> nn.Module:
        """The network, for samples that fit."""

    def scaled(self, size: int) -> int:
        """The hidden size ``size`` at this width, at least 1."""
        return max(1, round(size * self.width))


def is_image(input_shape: tuple[int, ...], vocabulary: int | None) -> bool:
    """Whether samples are numbers ``[channels, height, width]``."""
    return vocabulary is None and len(input_shape) == 3
