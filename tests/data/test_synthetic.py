"""Made-up data."""

from __future__ import annotations

import pytest
import torch

from sparsekern.data import Synthetic


def test_shapes_labels_and_sizes():
    data = Synthetic(input_shape=(3, 4, 4), classes=3, train_samples=10, test_samples=5).load()
    assert data.train_x.shape == (10, 3, 4, 4)
    assert data.test_x.shape == (5, 3, 4, 4)
    assert data.input_shape == (3, 4, 4)
    assert data.train_y.tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 2, 0]


def test_same_seed_same_data():
    torch.manual_seed(5)
    first = Synthetic(data_seed=3).load()
    torch.manual_seed(6)
    again, other = Synthetic(data_seed=3).load(), Synthetic(data_seed=4).load()
    assert torch.equal(first.train_x, again.train_x)
    assert not torch.equal(first.train_x, other.train_x)


def test_without_noise_each_class_is_one_point():
    data = Synthetic(noise=0.0, classes=4).load()
    assert len(torch.unique(data.train_x, dim=0)) == 4


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"input_shape": ()}, "Expected input_shape to have at least one size. Got none."),
        ({"input_shape": (3, 0)}, "Expected input_shape to be above 0. Got 0."),
        ({"classes": 0}, "Expected classes to be above 0. Got 0."),
        ({"train_samples": -1}, "Expected train_samples to be above 0. Got -1."),
        ({"noise": -0.5}, "Expected noise to be at least 0. Got -0.5."),
        ({"data_seed": -1}, "Expected data_seed to be in [0, 2**32). Got -1."),
    ],
)
def test_errors(options: dict[str, object], sentence: str):
    with pytest.raises(ValueError) as error:
        Synthetic(**options)  # type: ignore[arg-type]
    assert str(error.value) == sentence
