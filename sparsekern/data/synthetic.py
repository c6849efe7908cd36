"""Made-up data."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sparsekern._checks import check_positive
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
        if not 0 <= self.data_seed < 2**32:
            raise ValueError(f"Expected data_seed to be in [0, 2**32). Got {self.data_seed}.")

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


DATASETS.add("synthetic", Synthetic)
