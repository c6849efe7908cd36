"""The small convolutional network."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sparsekern.models import CNN, MODELS, cnn


def test_layers_and_names():
    model = cnn(3, 10, [4, 6])
    names = [name for name, _ in model.named_children()]
    assert names == [
        *("conv0", "norm0", "relu0", "pool0", "conv1", "norm1", "relu1"),
        *("mean", "flatten", "output"),
    ]


def test_computes_what_it_says():
    model = cnn(2, 3, [4, 5]).eval()
    x = torch.randn(3, 2, 8, 6)
    part = dict(model.named_children())
    y = F.relu(part["norm0"](part["conv0"](x)))
    assert y.shape == (3, 4, 8, 6)
    y = F.relu(part["norm1"](part["conv1"](F.max_pool2d(y, 2))))
    assert torch.allclose(model(x), part["output"](y.mean((2, 3))), atol=1e-6)


def test_channels_at_a_width():
    model = CNN(channels=(8, 16), width=0.5).build((3, 8, 8), 10)
    convs = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert [(c.in_channels, c.out_channels) for c in convs] == [(3, 4), (4, 8)]


def test_images_too_small_for_the_pooling():
    with pytest.raises(ValueError) as error:
        CNN(channels=(4, 4, 4)).build((1, 8, 3), 2)
    assert str(error.value) == (
        "Expected images of at least 4x4 pixels for 3 blocks with pooling between them. Got 8x3."
    )
    assert CNN(channels=(4, 4, 4)).build((1, 4, 4), 2)(torch.zeros(2, 1, 4, 4)).shape == (2, 2)


@pytest.mark.parametrize(
    ("channels", "sentence"),
    [
        ((), "Expected channels to have at least one size. Got none."),
        ((4, 0), "Expected channels to be above 0. Got 0."),
    ],
)
def test_channels_out_of_range(channels: tuple[int, ...], sentence: str):
    with pytest.raises(ValueError) as error:
        CNN(channels=channels)
    assert str(error.value) == sentence


def test_registered():
    assert MODELS["cnn"] is CNN
