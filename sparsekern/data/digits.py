"""Handwritten digits of scikit-learn."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from sparsekern.data.dataset import DATASETS, Dataset, Source

CLASSES = 10


@dataclass(frozen=True, kw_only=True)
class Digits(Source):
    """The 1797 handwritten digits of 8x8 pixels that scikit-learn brings along.

    Pixels are scaled to [0, 1] and standardised by the mean and the standard deviation of all
    training pixels. The split keeps the shares of the classes.

    Args:
        input_shape: of a sample, 64 numbers in all: ``[64]``, ``[1, 8, 8]`` for networks of images,
            ``[8, 8]`` for encoders (each row of the image is a token).
        test_fraction: share of the samples that are the test set, in (0, 1).
        split_seed: of the split; the same for all seeds of a run.

    Reference: Kaynak, Optical recognition of handwritten digits, 1995 (its test part).
    """

    input_shape: tuple[int, ...] = (64,)
    test_fraction: float = 0.5
    split_seed: int = 0

    def __post_init__(self) -> None:
        if min(self.input_shape, default=0) < 1 or math.prod(self.input_shape) != 64:
            raise ValueError(
                f"Expected input_shape to have 64 numbers. Got {list(self.input_shape)}."
            )
        if not 0.0 < self.test_fraction < 1.0:
            raise ValueError(
                f"Expected test_fraction to be between 0 and 1. Got {self.test_fraction}."
            )
        if not 0 <= self.split_seed < 2**32:
            raise ValueError(f"Expected split_seed to be in [0, 2**32). Got {self.split_seed}.")

    def load(self) -> Dataset:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        pixels, labels = load_digits(return_X_y=True)
        test_samples = math.ceil(self.test_fraction * len(labels))
        if not CLASSES <= test_samples <= len(labels) - CLASSES:
            raise ValueError(
                f"Expected data.test_fraction to leave each of {CLASSES} classes a sample on both "
                f"sides. Got {self.test_fraction}, {test_samples} test samples of {len(labels)}."
            )
        train_x, test_x, train_y, test_y = train_test_split(
            pixels.astype("float32").reshape(-1, *self.input_shape) / 16,
            labels.astype("int64"),
            test_size=self.test_fraction,
            random_state=self.split_seed,
            stratify=labels,
        )
        mean, deviation = train_x.mean(), train_x.std()
        return Dataset(
            torch.from_numpy((train_x - mean) / deviation),
            torch.from_numpy(train_y),
            torch.from_numpy((test_x - mean) / deviation),
            torch.from_numpy(test_y),
            classes=CLASSES,
        )


DATASETS.add("digits", Digits)
