"""VGG networks for CIFAR."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sparsekern.models import MODELS, VGG, vgg


@pytest.mark.parametrize(
    ("depth", "parameters"),
    [(11, 9_228_362), (13, 9_413_066), (16, 14_724_042), (19, 20_035_018)],
)
def test_parameters_for_cifar(depth: int, parameters: int):
    """The features of torchvision's vgg*_bn without the biases of convolutions, and the classifier:
    for VGG-16, 14,723,136 - 4,224 + 5,130."""
    with torch.device("meta"):
        model = VGG(depth=depth).build((3, 32, 32), 10)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


def test_depth_counts_the_convolutions_of_the_paper():
    """Three Linear layers of the paper are one here."""
    for depth in (11, 13, 16, 19):
        with torch.device("meta"):
            model = VGG(depth=depth).build((3, 32, 32), 10)
        assert sum(isinstance(m, nn.Conv2d) for m in model.modules()) == depth - 3
        assert sum(isinstance(m, nn.MaxPool2d) for m in model.modules()) == 5


def test_layers_and_names():
    names = [name for name, _ in vgg(3, 10, (1, 2), (4, 6)).named_children()]
    assert names == [
        *("conv0", "norm0", "relu0", "pool0"),
        *("conv1", "norm1", "relu1", "conv2", "norm2", "relu2", "pool1"),
        *("mean", "flatten", "output"),
    ]


def test_computes_what_it_says():
    model = vgg(2, 3, (1, 2), (4, 5)).eval()
    x = torch.randn(3, 2, 12, 8)
    part = dict(model.named_children())
    y = F.max_pool2d(F.relu(part["norm0"](part["conv0"](x))), 2)
    for i in (1, 2):
        y = F.relu(part[f"norm{i}"](part[f"conv{i}"](y)))
    assert y.shape == (3, 5, 6, 4)
    expected = part["output"](F.max_pool2d(y, 2).mean((2, 3)))
    assert torch.allclose(model(x), expected, atol=1e-6)


def test_images_too_small_for_the_pooling():
    with pytest.raises(ValueError) as error:
        VGG(depth=16).build((1, 40, 31), 2)
    assert str(error.value) == (
        "Expected images of at least 32x32 pixels for five stages that end in pooling. Got 40x31."
    )


def test_depth_out_of_range():
    with pytest.raises(ValueError) as error:
        VGG(depth=17)
    assert str(error.value) == "Expected depth to be one of 11, 13, 16, 19. Got 17."


def test_registered():
    assert MODELS["vgg"] is VGG
