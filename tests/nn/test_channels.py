"""Channels that are constant or unread are cut out; outputs stay the same."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sparsekern as sk
from sparsekern.nn import remove_channels


@torch.no_grad()
def dead(layer: nn.Module, rows: list[int], bias: float = 0.0) -> nn.Module:
    layer.weight[rows] = 0
    if layer.bias is not None:
        layer.bias[rows] = bias
    return layer


@torch.no_grad()
def statistics(norm: nn.BatchNorm2d) -> nn.BatchNorm2d:
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    norm.weight.normal_()
    norm.bias.normal_()
    return norm


def check(model: nn.Module, x: Tensor, removed: dict[str, int]) -> sk.nn.ChannelReport:
    model.eval()
    before = model(x).detach()
    report = remove_channels(model)
    assert report.removed == removed
    torch.testing.assert_close(model(x), before, atol=1e-5, rtol=1e-4)
    return report


X = torch.linspace(-1, 1, 48).view(6, 8)
IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("bias", [0.0, 0.7, -0.7])
def test_mlp(bias: float) -> None:
    """A constant row goes, its bias through GELU into the next bias; parameters shrink."""
    model = nn.Sequential(
        dead(nn.Linear(8, 16), [1, 5, 6], bias), nn.GELU(), nn.Dropout(), nn.Linear(16, 4)
    )
    check(model, X, {"0": 3})
    assert (model[0].out_features, model[3].in_features) == (13, 13)
    assert model[0].weight.shape == (13, 8)
    assert model[3].weight.shape == (4, 13)


def test_by_hand() -> None:
    """y = 2 relu(0 x + 3) + 5 relu(x) becomes 5 relu(x) + 6."""
    model = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[0.0], [1.0]]))
        model[0].bias.copy_(torch.tensor([3.0, 0.0]))
        model[2].weight.copy_(torch.tensor([[2.0, 5.0]]))
    report = remove_channels(model)
    assert model[0].weight.tolist() == [[1.0]]
    assert model[2].weight.tolist() == [[5.0]]
    assert model[2].bias.tolist() == [6.0]
    assert str(report) == "0: 1 output channels removed"


def test_unread_channels_and_what_follows_from_them() -> None:
    """A channel nobody reads goes; its inputs may then be unread in turn."""
    model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4))
    with torch.no_grad():
        model[4].weight[:, 2] = 0  # 2's third output is not read,
        model[2].weight[:, 1] = 0  # and only that output reads 0's second one
        model[2].weight[2, 1] = 1
    check(model, X, {"0": 1, "2": 1})


@pytest.mark.parametrize("bias", [0.0, 0.5])
def test_cnn(bias: float) -> None:
    """Conv, norm, ReLU, pooling, Flatten, Linear; a padded reader takes no constant but zero."""
    model = nn.Sequential(
        dead(nn.Conv2d(3, 8, 3, padding=1), [0, 3], bias),
        statistics(nn.BatchNorm2d(8)),
        nn.ReLU(),
        nn.MaxPool2d(2),
        dead(nn.Conv2d(8, 6, 3), [2], bias),
        nn.SiLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(24, 4),
    )
    check(model, IMAGES, {"0": 2, "4": 1})
    assert (model[0].out_channels, model[1].num_features, model[4].in_channels) == (6, 6, 6)
    assert model[8].in_features == 20


def test_border_of_a_padded_reader() -> None:
    for bias, removed in ((0.5, {}), (-0.5, {"0": 1})):
        model = nn.Sequential(
            dead(nn.Conv2d(3, 4, 3), [1], bias), nn.ReLU(), nn.Conv2d(4, 2, 3, padding=1)
        )
        check(model, IMAGES, removed)
        pooled = nn.Sequential(
            dead(nn.Conv2d(3, 4, 3), [1], bias),
            nn.ReLU(),
            nn.AvgPool2d(3, padding=1),
            nn.Conv2d(4, 2, 1),
        )
        check(pooled, IMAGES, removed)


def test_one_channel_is_kept() -> None:
    model = nn.Sequential(dead(nn.Linear(8, 5), [0, 1, 2, 3, 4], 0.3), nn.ReLU(), nn.Linear(5, 4))
    check(model, X, {"0": 4})


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.first, self.second = (
            dead(nn.Conv2d(3, 4, 3), [1], 0.5),
            dead(nn.Linear(144, 9), [0], 0.5),
            nn.Linear(9, 2),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = torch.flatten(F.relu(self.conv(x)), 1)
        return self.second(self.first(x).tanh())


def test_functions_are_followed() -> None:
    check(Functional(), IMAGES, {"conv": 1, "first": 1})


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = dead(nn.Linear(8, 8), [0]), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x) + x)


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = dead(nn.Linear(8, 8), [0]), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(self.a(x)))


class Branch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = dead(nn.Linear(8, 8), [0])

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) if x.sum() > 0 else x


def tied() -> nn.Module:
    model = nn.Sequential(dead(nn.Linear(8, 8), [0]), nn.Linear(8, 8))
    model[1].weight = model[0].weight
    return model


def hooked() -> nn.Module:
    model = nn.Sequential(dead(nn.Linear(8, 8), [0]), nn.ReLU(), nn.Linear(8, 8))
    model[1].register_forward_hook(lambda *_: None)
    return model


def chain(*between: nn.Module) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(dead(nn.Linear(8, 8), [0]), *between, nn.Linear(8, 8))


UNPROVABLE: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "residual": (Residual, "add is not known to treat each channel for itself"),
    "twice": (Twice, "a is used more than once"),
    "branch": (Branch, "the model cannot be traced: "),
    "tied": (tied, "shares a parameter with another module"),
    "hooked": (hooked, "1 has hooks"),
    "layer norm": (chain(nn.LayerNorm(8)), r"1 \(LayerNorm\) is not known to keep channels apart"),
    "softmax": (chain(nn.Softmax(-1)), r"1 \(Softmax\) is not known to keep channels apart"),
    "norm": (chain(nn.BatchNorm1d(8)), r"1 \(BatchNorm1d\) is not known to keep channels apart"),
    "output": (lambda: nn.Sequential(dead(nn.Linear(8, 8), [0])), "are outputs of the model"),
}


@pytest.mark.parametrize("name", list(UNPROVABLE))
def test_what_cannot_be_proved_is_left_and_named(name: str) -> None:
    build, sentence = UNPROVABLE[name]
    report = check(build(), X, {})
    assert len(report.left) >= 1
    with pytest.raises(AssertionError, match=sentence):
        raise AssertionError(str(report))


def test_training_mode_and_groups_are_left() -> None:
    model = nn.Sequential(
        dead(nn.Conv2d(3, 4, 3), [1]), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=2)
    )
    report = remove_channels(model)
    assert "call model.eval() first" in report.left["0"]
    assert "the next layer has groups" in check(model, IMAGES, {}).left["0"]
    dropout = nn.Sequential(dead(nn.Linear(8, 8), [1]), nn.Dropout(), nn.Linear(8, 8))
    assert "call model.eval() first" in remove_channels(dropout).left["0"]
    grouped = nn.Sequential(dead(nn.Conv2d(3, 6, 3, groups=3), [1]), nn.Conv2d(6, 2, 1))
    assert "it has groups" in check(grouped, IMAGES, {}).left["0"]


def test_inside_of_a_torch_module() -> None:
    model = nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True))
    dead(model[0].linear1, [3])
    report = check(model, X.view(1, 6, 8), {})
    assert report.left == {"0.linear1": "inside of a module of torch"}


def test_densify_removes_and_logs(caplog: pytest.LogCaptureFixture) -> None:
    model = nn.Sequential(
        dead(nn.Linear(8, 16), [1, 2], 0.5), nn.ReLU(), nn.Linear(16, 8), nn.Linear(8, 4)
    )
    sk.sparsify(model, mask="nonzero", format="csr")
    with caplog.at_level(logging.INFO, logger="sparsekern"):
        dense = sk.densify(model, remove_channels=True)
    assert "0: 2 output channels removed" in caplog.text
    assert dense[0].out_features == 14
    assert sk.densify(model)[0].out_features == 16
    assert model[0].out_features == 16
    torch.testing.assert_close(dense(X), model(X))
