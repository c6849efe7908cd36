"""The bundled handwritten digits."""

from __future__ import annotations

import pytest
import torch
from sklearn.datasets import load_digits

from sparsekern.data import DATASETS, Digits


def _rows(pixels: torch.Tensor) -> list[list[int]]:
    """Images of pixels in [0, 1] in a fixed order; the file's pixels are 0 to 16."""
    return sorted((16 * pixels).round().int().tolist())


def test_shapes_and_types():
    data = Digits().load()
    assert data.train_x.shape == (898, 64)
    assert data.test_x.shape == (899, 64)
    assert data.train_x.dtype == data.test_x.dtype == torch.float32
    assert data.train_y.dtype == data.test_y.dtype == torch.int64
    assert data.input_shape == (64,)
    assert data.classes == 10


def test_split_is_disjoint_and_complete():
    data = Digits().load()
    both = torch.cat([data.train_x, data.test_x])
    pixels = torch.tensor(load_digits().data / 16, dtype=torch.float32)
    # Undo the standardisation by the two values that are known: 0 and 1.
    scaled = (both - both.min()) / (both.max() - both.min())
    assert _rows(scaled) == _rows(pixels)


def test_split_is_stratified():
    data = Digits().load()
    train, test = data.train_y.bincount(), data.test_y.bincount()
    assert (train - test).abs().max() <= 1


def test_standardised_by_the_training_pixels():
    data = Digits(test_fraction=0.3).load()
    assert data.train_x.mean().abs() < 1e-5
    assert abs(data.train_x.std() - 1) < 1e-3
    assert data.test_x.mean() != 0


def test_split_follows_its_seed():
    assert torch.equal(Digits().load().train_x, Digits().load().train_x)
    assert not torch.equal(Digits().load().train_y, Digits(split_seed=1).load().train_y)


@pytest.mark.parametrize("shape", [(1, 8, 8), (8, 8), (4, 16)])
def test_other_shapes_hold_the_same_pixels(shape: tuple[int, ...]):
    flat, shaped = Digits().load(), Digits(input_shape=shape).load()
    assert shaped.input_shape == shape
    assert torch.equal(shaped.train_x.flatten(1), flat.train_x)
    assert torch.equal(shaped.test_x.flatten(1), flat.test_x)
    assert torch.equal(shaped.train_y, flat.train_y)


@pytest.mark.parametrize("shape", [(), (63,), (8, 4), (0, 64), (-8, -8)])
def test_shape_of_another_number_of_pixels(shape: tuple[int, ...]):
    with pytest.raises(ValueError) as error:
        Digits(input_shape=shape)
    assert str(error.value) == f"Expected input_shape to have 64 numbers. Got {list(shape)}."


@pytest.mark.parametrize("fraction", [0.0, 1.0, float("nan")])
def test_test_fraction_out_of_range(fraction: float):
    with pytest.raises(ValueError, match="Expected test_fraction to be between 0 and 1. Got"):
        Digits(test_fraction=fraction)


def test_split_seed_out_of_range():
    with pytest.raises(ValueError, match=r"Expected split_seed to be in .* Got -1\."):
        Digits(split_seed=-1)


def test_registered():
    assert DATASETS["digits"] is Digits
    with pytest.raises(
        ValueError, match="Expected data to be one of cifar10, cifar100, digits, glue, synthetic"
    ):
        DATASETS["digit"]


@pytest.mark.parametrize(("fraction", "samples"), [(0.001, 2), (0.999, 1796)])
def test_split_that_leaves_classes_without_samples(fraction: float, samples: int):
    with pytest.raises(ValueError) as error:
        Digits(test_fraction=fraction).load()
    assert str(error.value) == (
        "Expected data.test_fraction to leave each of 10 classes a sample on both sides. "
        f"Got {fraction}, {samples} test samples of 1797."
    )
