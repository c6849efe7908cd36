"""Residual networks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from sparsekern.models import MODELS, ResNet
from sparsekern.models.resnet import BasicBlock, PadShortcut


def _parameters(shape: tuple[int, ...], classes: int, **options: Any) -> int:
    with torch.device("meta"):
        model = ResNet(**options).build(shape, classes)
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("depth", "parameters", "paper"),
    [
        (20, 269_722, 0.27e6),
        (32, 464_154, 0.46e6),
        (44, 658_586, 0.66e6),
        (56, 853_018, 0.85e6),
        (18, 11_173_962, 11.2e6),
        (34, 21_282_122, 21.3e6),
    ],
)
def test_parameters_for_cifar(depth: int, parameters: int, paper: float):
    """The paper's table 6 and what others publish for ResNet-18."""
    assert _parameters((3, 32, 32), 10, depth=depth) == parameters
    assert parameters == pytest.approx(paper, rel=0.01)


@pytest.mark.parametrize(("depth", "parameters"), [(18, 11_689_512), (34, 21_797_672)])
def test_parameters_for_imagenet(depth: int, parameters: int):
    """torchvision's resnet18 and resnet34."""
    assert _parameters((3, 224, 224), 1000, depth=depth, stem="imagenet") == parameters


def test_projection_shortcuts_add_their_convolutions():
    added = 16 * 32 + 2 * 32 + 32 * 64 + 2 * 64
    plain = _parameters((3, 32, 32), 10, depth=20)
    assert _parameters((3, 32, 32), 10, depth=20, shortcut="projection") == plain + added
    assert _parameters((3, 32, 32), 10, depth=18, shortcut="pad") < 11_173_962


def test_names_are_those_of_torchvision():
    names = set(ResNet(depth=18, stem="imagenet").build((3, 224, 224), 1000).state_dict())
    assert len(names) == 122
    assert {
        "conv1.weight",
        "bn1.running_var",
        "layer1.1.conv2.weight",
        "layer4.0.downsample.0.weight",
        "layer4.0.downsample.1.bias",
        "fc.bias",
    } <= names


@pytest.mark.parametrize(
    ("options", "size", "sizes"),
    [
        ({"depth": 20}, 32, [32, 16, 8]),
        ({"depth": 18}, 32, [32, 16, 8, 4]),
        ({"depth": 18, "stem": "imagenet"}, 224, [56, 28, 14, 7]),
    ],
)
def test_sizes_of_the_images(options: dict[str, Any], size: int, sizes: list[int]):
    model = ResNet(**options, width=1 / 16).build((3, size, size), 10)
    seen: list[int] = []
    for name in model.stages:
        model.get_submodule(name).register_forward_hook(lambda *hook: seen.append(hook[2].shape[2]))
    model(torch.zeros(1, 3, size, size))
    assert seen == sizes


def test_depth_counts_the_weighted_layers():
    for depth in (18, 20, 32, 34, 44, 56):
        with torch.device("meta"):
            model = ResNet(depth=depth, shortcut="pad").build((3, 32, 32), 10)
        layers = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
        assert len(layers) == depth


def test_pad_shortcut_by_hand():
    x = torch.arange(16.0).view(1, 1, 4, 4)
    y = PadShortcut(1, 4)(x)
    assert y.shape == (1, 4, 2, 2)
    assert y[0, 1].tolist() == [[0, 2], [8, 10]]
    assert y[0, [0, 2, 3]].abs().sum() == 0


def test_pad_shortcut_and_block_agree_on_odd_sizes():
    block = BasicBlock(2, 4, 2, PadShortcut(2, 4))
    assert block(torch.randn(1, 2, 5, 7)).shape == (1, 4, 3, 4)


def test_block_by_hand():
    block = BasicBlock(3, 3, 1, None).eval()
    x = torch.randn(2, 3, 4, 4)
    y = block.bn2(block.conv2(block.bn1(block.conv1(x)).relu()))
    assert torch.equal(block(x), (y + x).relu())


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"depth": 19}, "Expected depth to be one of 18, 20, 32, 34, 44, 56. Got 19."),
        ({"depth": 18, "stem": "mnist"}, "Expected stem to be one of cifar, imagenet. Got 'mnist'"),
        ({"depth": 18, "shortcut": "a"}, "Expected shortcut to be one of paper, pad, projection. "),
    ],
)
def test_errors(options: dict[str, Any], sentence: str):
    with pytest.raises(ValueError) as error:
        ResNet(**options)
    assert str(error.value).startswith(sentence)


def test_registered():
    assert MODELS["resnet"] is ResNet
