"""``Dataset``: tensors to train and test on. ``Source``: the configuration that loads one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsekern._registry import Registry
from sparsekern.data.batches import batches, epoch_generator

DATASETS: Registry[type[Source]] = Registry("data")


@dataclass(frozen=True)
class Dataset:
    """A classification problem, of samples or of every token in them, that fits into memory.

    Attributes:
        train_x, test_x: ``[samples, *input_shape]``: float32 numbers, uint8 pixels that
            ``prepare`` turns into such, or int64 tokens in ``[0, vocabulary)``, of which 0 is
            padding (in running text: the border between two files).
        train_y, test_y: int64 labels in ``[0, classes)``: ``[samples]``, or ``[samples, tokens]``
            where every token has one.
        classes: number of classes.
        vocabulary: number of different tokens; None: samples are numbers.
        prepare: turns a batch as it is stored into what a model takes; None: it is that already.
        augment: changes a stored training batch at random, by the generator alone; None: nothing.
    """

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    classes: int
    vocabulary: int | None = None
    prepare: Callable[[Tensor], Tensor] | None = None
    augment: Callable[[Tensor, torch.Generator], Tensor] | None = None

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return tuple(self.train_x.shape[1:])

    @property
    def per_token(self) -> bool:
        """Whether every token of a sample has a label, in place of the sample."""
        return self.train_y.ndim > 1

    def train_batches(
        self, batch_size: int, *, seed: int, epoch: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """:func:`~sparsekern.data.batches` of the training set, augmented and prepared.

        Order and augmentation follow from ``(seed, epoch)`` and nothing else.
        """
        generator = epoch_generator("augment", seed, epoch)
        for x, y in batches(self.train_x, self.train_y, batch_size, seed=seed, epoch=epoch):
            if self.augment is not None:
                x = self.augment(x, generator)
            yield (x if self.prepare is None else self.prepare(x)), y

    def test_batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The whole test set in its order, prepared; the last batch may be smaller."""
        pairs = zip(self.test_x.split(batch_size), self.test_y.split(batch_size), strict=True)
        for x, y in pairs:
            yield (x if self.prepare is None else self.prepare(x)), y


@dataclass(frozen=True, kw_only=True)
class Source(ABC):
    """Where a dataset comes from: a frozen configuration, its fields are a recipe's options."""

    @abstractmethod
    def load(self) -> Dataset:
        """The dataset; the same configuration gives the same tensors."""
