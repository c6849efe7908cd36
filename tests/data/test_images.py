"""Standardisation and augmentation of batches of images."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from sparsekern.data import Dataset
from sparsekern.data.images import CropAndFlip, Standardize


def _pixels(samples: int, size: int = 6, channels: int = 3) -> torch.Tensor:
    return torch.randint(0, 256, (samples, channels, size, size), dtype=torch.uint8)


def test_standardised_per_channel():
    pixels = _pixels(50)
    pixels[:, 1] //= 3
    x = Standardize.of(pixels)(pixels)
    assert x.dtype == torch.float32
    assert x.mean((0, 2, 3)).abs().max() < 1e-5
    assert torch.allclose(x.std((0, 2, 3), correction=0), torch.ones(3), atol=1e-5)


def test_statistics_are_those_of_floating_point():
    pixels = _pixels(20)
    both = Standardize.of(pixels)
    exact = pixels.double()
    assert torch.allclose(both.mean.flatten().double(), exact.mean((0, 2, 3)))
    assert torch.allclose(both.deviation.flatten().double(), exact.std((0, 2, 3), correction=0))


def test_a_channel_of_one_value_is_zero():
    pixels = torch.full((2, 1, 3, 3), 7, dtype=torch.uint8)
    assert torch.equal(Standardize.of(pixels)(pixels), torch.zeros(2, 1, 3, 3))


def test_each_image_is_a_crop_of_the_padded_one_or_of_its_mirror_image():
    images = _pixels(64)
    generator = torch.Generator().manual_seed(0)
    changed = CropAndFlip(2)(images, generator)
    assert changed.shape == images.shape
    assert changed.dtype == torch.uint8
    assert changed.is_contiguous()
    padded = F.pad(images, (2, 2, 2, 2))
    seen = set()
    for image, around in zip(changed, padded, strict=True):
        places = [
            (top, left, flipped)
            for top in range(5)
            for left in range(5)
            for flipped in (False, True)
            if torch.equal(
                image.flip(-1) if flipped else image, around[:, top : top + 6, left : left + 6]
            )
        ]
        assert len(places) == 1
        seen.update(places)
    assert len({place[0] for place in seen}) == len({place[1] for place in seen}) == 5
    assert {place[2] for place in seen} == {False, True}


def test_no_padding_and_an_image_of_another_shape():
    images = torch.randn(8, 1, 2, 5)
    changed = CropAndFlip(0)(images, torch.Generator().manual_seed(0))
    for image, old in zip(changed, images, strict=True):
        assert torch.equal(image, old) or torch.equal(image.flip(-1), old)


def _epoch(dataset: Dataset, seed: int, epoch: int) -> list[torch.Tensor]:
    return [x for x, _ in dataset.train_batches(8, seed=seed, epoch=epoch)]


def test_batches_are_augmented_and_prepared_by_seed_and_epoch():
    pixels, y = _pixels(20), torch.arange(20)
    standardize = Standardize.of(pixels)
    data = Dataset(pixels, y, pixels, y, 20, prepare=standardize, augment=CropAndFlip(1))
    torch.manual_seed(1)
    first = _epoch(data, 3, 4)
    torch.manual_seed(2)
    again = _epoch(data, 3, 4)
    assert [x.dtype for x in first] == [torch.float32, torch.float32]
    assert all(torch.equal(x, other) for x, other in zip(first, again, strict=True))
    for seed, epoch in ((3, 5), (4, 4)):
        assert not torch.equal(first[0], _epoch(data, seed, epoch)[0])


def test_the_test_set_is_prepared_and_not_augmented():
    pixels, y = _pixels(5), torch.arange(5)
    data = Dataset(pixels, y, pixels, y, 5, prepare=Standardize.of(pixels), augment=CropAndFlip(1))
    batches = list(data.test_batches(2))
    assert [len(x) for x, _ in batches] == [2, 2, 1]
    assert torch.equal(torch.cat([x for x, _ in batches]), Standardize.of(pixels)(pixels))
    assert torch.equal(torch.cat([labels for _, labels in batches]), y)


def test_augmentation_follows_its_samples():
    """The order of the samples is that of batches without augmentation."""
    pixels = torch.arange(20, dtype=torch.uint8).view(20, 1, 1, 1).expand(20, 1, 4, 4)
    data = Dataset(pixels, torch.arange(20), pixels, torch.arange(20), 20, augment=CropAndFlip(1))
    for x, y in data.train_batches(10, seed=0, epoch=0):
        assert torch.equal(x.amax((1, 2, 3)), y)


@pytest.mark.parametrize("samples", [0, 1])
def test_few_images(samples: int):
    images = _pixels(samples)
    assert CropAndFlip(4)(images, torch.Generator()).shape == images.shape
