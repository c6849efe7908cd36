"""The multi-layer perceptron."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sparsekern.models import MLP, MODELS, mlp


def _sizes(model: nn.Module) -> list[tuple[int, int]]:
    return [(m.in_features, m.out_features) for m in model.modules() if isinstance(m, nn.Linear)]


def test_layers_and_names():
    model = mlp(8, 3, [6, 5])
    assert _sizes(model) == [(8, 6), (6, 5), (5, 3)]
    assert [n for n, m in model.named_modules() if isinstance(m, nn.Linear)] == [
        "hidden0",
        "hidden1",
        "output",
    ]


def test_computes_what_it_says():
    model = mlp(4, 2, [3])
    x = torch.randn(5, 2, 2)
    first, last = model.get_submodule("hidden0"), model.get_submodule("output")
    assert torch.equal(model(x), last(first(x.flatten(1)).relu()))


def test_no_hidden_layer_is_a_linear_classifier():
    assert _sizes(mlp(4, 2, [])) == [(4, 2)]


def test_configuration_builds_for_any_input_shape():
    model = MLP(hidden=(7,)).build((3, 4), 5)
    assert _sizes(model) == [(12, 7), (7, 5)]


def test_width_scales_the_hidden_layers_only():
    assert _sizes(MLP(hidden=(10, 20), width=0.25).build((8,), 3)) == [(8, 2), (2, 5), (5, 3)]
    assert _sizes(MLP(hidden=(10,), width=1e-6).build((8,), 3)) == [(8, 1), (1, 3)]


def test_weights_follow_the_callers_seed():
    torch.manual_seed(7)
    first = MLP(hidden=(4,)).build((3,), 2).state_dict()
    torch.manual_seed(7)
    again = MLP(hidden=(4,)).build((3,), 2).state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)


@pytest.mark.parametrize("width", [0.0, -1.0, float("nan")])
def test_width_out_of_range(width: float):
    with pytest.raises(ValueError, match=r"Expected width to be above 0\. Got"):
        MLP(hidden=(4,), width=width)


def test_hidden_size_out_of_range():
    with pytest.raises(ValueError, match=r"Expected hidden to be above 0\. Got 0\."):
        MLP(hidden=(4, 0))


def test_registered():
    assert MODELS["mlp"] is MLP
