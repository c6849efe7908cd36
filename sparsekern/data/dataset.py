"""``Dataset``: tensors to train and test on. ``Source``: the configuration that loads one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from sparsekern._registry import Registry

DATASETS: Registry[type[Source]] = Registry("data")


@dataclass(frozen=True)
class Dataset:
    """A classification problem that fits into memory.

    Attributes:
        train_x, test_x: float32 ``[samples, *input_shape]``.
        train_y, test_y: int64 ``[samples]``, labels in ``[0, classes)``.
        classes: number of classes.
    """

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    classes: int

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return tuple(self.train_x.shape[1:])


@dataclass(frozen=True, kw_only=True)
class Source(ABC):
    """Where a dataset comes from: a frozen configuration, its fields are a recipe's options."""

    @abstractmethod
    def load(self) -> Dataset:
        """The dataset; the same configuration gives the same tensors."""
