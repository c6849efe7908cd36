"""Made-up data."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparsekern._checks import check_fraction, check_positive
from sparsekern.data.dataset import DATASETS, Dataset, Source


@dataclass(frozen=True, kw_only=True)
class Synthetic(Source):
    """One random prototype a class plus noise: ``x = prototype[y] + noise * normal``.

    Args:
        input_shape: shape of one sample.
        classes: number of classes; labels take turns, so the classes are of equal size.
        train_samples, test_samples: sizes.
        noise: standard deviation of the noise; the prototypes have 1.
        data_seed: of all random numbers; the same for all seeds of a run.
    """

    input_shape: tuple[int, ...] = (64,)
    classes: int = 10
    train_samples: int = 512
    test_samples: int = 256
    noise: float = 1.0
    data_seed: int = 0

    def __post_init__(self) -> None:
        if not self.input_shape:
            raise ValueError("Expected input_shape to have at least one size. Got none.")
        for size in self.input_shape:
            check_positive(size, "input_shape")
        for name in ("classes", "train_samples", "test_samples"):
            check_positive(getattr(self, name), name)
        if not self.noise >= 0:
            raise ValueError(f"Expected noise to be at least 0. Got {self.noise}.")
        _check_seed(self.data_seed)

    def load(self) -> Dataset:
        generator = torch.Generator().manual_seed(self.data_seed)
        samples = self.train_samples + self.test_samples
        prototypes = torch.randn(self.classes, *self.input_shape, generator=generator)
        noise = self.noise * torch.randn(samples, *self.input_shape, generator=generator)
        y = torch.arange(samples) % self.classes
        x = prototypes[y] + noise
        train = slice(None, self.train_samples)
        test = slice(self.train_samples, None)
        return Dataset(x[train], y[train], x[test], y[test], self.classes)


@dataclass(frozen=True, kw_only=True)
class SyntheticText(Source):
    """Made-up tokens: one random sequence a class, of which some places are drawn anew.

    Tokens are in ``[1, vocabulary)``: none is padding.

    Args:
        tokens: of a sample.
        vocabulary: number of different tokens, above 1.
        classes: number of classes; labels take turns, so the classes are of equal size.
        next_token: the label of every token is the one after it, in place of the class of the
            sample.
        train_samples, test_samples: sizes.
        noise: share of the tokens that are drawn anew, in [0, 1].
        data_seed: of all random numbers; the same for all seeds of a run.
    """

    tokens: int = 64
    vocabulary: int = 256
    classes: int = 10
    next_token: bool = False
    train_samples: int = 512
    test_samples: int = 256
    noise: float = 0.5
    data_seed: int = 0

    def __post_init__(self) -> None:
        for name in ("tokens", "classes", "train_samples", "test_samples"):
            check_positive(getattr(self, name), name)
        if self.vocabulary < 2:
            raise ValueError(f"Expected vocabulary to be above 1. Got {self.vocabulary}.")
        check_fraction(self.noise, "noise")
        _check_seed(self.data_seed)

    def load(self) -> Dataset:
        generator = torch.Generator().manual_seed(self.data_seed)
        samples, length = self.train_samples + self.test_samples, self.tokens + 1

        def draw(rows: int) -> Tensor:
            return torch.randint(1, self.vocabulary, (rows, length), generator=generator)

        prototypes, others = draw(self.classes), draw(samples)
        anew = torch.rand(samples, length, generator=generator) < self.noise
        label = torch.arange(samples) % self.classes
        text = torch.where(anew, others, prototypes[label])
        x, y = text[:, :-1], text[:, 1:] if self.next_token else label
        classes = self.vocabulary if self.next_token else self.classes
        cut = self.train_samples
        return Dataset(x[:cut], y[:cut], x[cut:], y[cut:], classes, vocabulary=self.vocabulary)


def _check_seed(seed: int) -> None:
    if not 0 <= seed < 2**32:
        raise ValueError(f"Expected data_seed to be in [0, 2**32). Got {seed}.")


DATASETS.add("synthetic", Synthetic)
DATASETS.add("synthetic_text", SyntheticText)
