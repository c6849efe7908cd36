"""Made-up data."""

from __future__ import annotations

import pytest
import torch

from sparsekern.data import DATASETS, Synthetic, SyntheticText


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


def test_text_has_a_label_for_each_sample():
    data = SyntheticText(tokens=9, vocabulary=7, classes=3, train_samples=10, test_samples=5).load()
    assert data.train_x.shape == (10, 9)
    assert data.test_x.shape == (5, 9)
    assert data.train_x.dtype == data.train_y.dtype == torch.int64
    assert data.train_y.tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 2, 0]
    assert (data.vocabulary, data.classes, data.per_token) == (7, 3, False)


def test_text_has_no_padding_and_every_token():
    data = SyntheticText(tokens=40, vocabulary=5, noise=1.0).load()
    assert data.train_x.unique().tolist() == [1, 2, 3, 4]


def test_text_with_the_next_token_as_label():
    data = SyntheticText(tokens=9, vocabulary=7, next_token=True).load()
    assert data.per_token
    assert data.classes == data.vocabulary == 7
    assert data.train_y.shape == data.train_x.shape
    assert torch.equal(data.train_y[:, :-1], data.train_x[:, 1:])


def test_noise_of_text_is_the_share_that_is_drawn_anew():
    clean = SyntheticText(noise=0.0, classes=4, vocabulary=1000).load().train_x
    assert len(torch.unique(clean, dim=0)) == 4
    noisy = SyntheticText(noise=0.3, classes=4, vocabulary=1000).load().train_x
    assert (clean != noisy).float().mean() == pytest.approx(0.3, abs=0.02)


def test_same_seed_same_text():
    first, again = SyntheticText(data_seed=3).load(), SyntheticText(data_seed=3).load()
    assert torch.equal(first.train_x, again.train_x)
    assert not torch.equal(first.train_x, SyntheticText(data_seed=4).load().train_x)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"tokens": 0}, "Expected tokens to be above 0. Got 0."),
        ({"classes": 0}, "Expected classes to be above 0. Got 0."),
        ({"vocabulary": 1}, "Expected vocabulary to be above 1. Got 1."),
        ({"noise": 1.5}, "Expected noise to be in [0, 1]. Got 1.5."),
        ({"data_seed": 2**32}, "Expected data_seed to be in [0, 2**32). Got 4294967296."),
    ],
)
def test_errors_of_text(options: dict[str, object], sentence: str):
    with pytest.raises(ValueError) as error:
        SyntheticText(**options)  # type: ignore[arg-type]
    assert str(error.value) == sentence


def test_registered():
    assert DATASETS["synthetic"] is Synthetic
    assert DATASETS["synthetic_text"] is SyntheticText
