"""Dense models to sparse ones and back: what comes along."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import sparsekern as sk


def test_densify_finds_every_place_of_a_layer() -> None:
    layer = nn.Linear(8, 8)
    model = nn.Sequential(layer, nn.ReLU(), layer, nn.Sequential(layer))
    sk.sparsify(model, 0.3)
    assert model[0].format is model[2].format
    once = sk.nn.SparseLinear.from_dense(nn.Linear(8, 8), 0.3)
    for sparse in (model, nn.Sequential(once, nn.ReLU(), once)):
        dense = sk.densify(sparse)
        assert not [m for m in dense.modules() if isinstance(m, sk.nn.SparseLinear)]
        assert dense[0].weight is dense[2].weight
        assert dense[0].bias is dense[2].bias
        x = torch.randn(3, 8)
        torch.testing.assert_close(dense(x), sparse(x))
    assert dense[0] is dense[2]


@pytest.mark.parametrize("frozen", [("weight",), ("bias",), ("weight", "bias"), ()])
@pytest.mark.parametrize("layer", [nn.Linear(16, 16), nn.Conv2d(16, 16, 3)])
def test_frozen_parameters_stay_frozen(frozen: tuple[str, ...], layer: nn.Module) -> None:
    model = nn.Sequential(copy.deepcopy(layer))
    for name in frozen:
        getattr(model[0], name).requires_grad_(False)
    sk.sparsify(model, 0.3)
    assert model[0].format.parameter.requires_grad == ("weight" not in frozen)
    for dense in (sk.densify(model)[0], model[0].to_dense()):
        assert dense.weight.requires_grad == ("weight" not in frozen)
        assert dense.bias.requires_grad == ("bias" not in frozen)


def test_hooks_come_along() -> None:
    """To the sparse layer and back; their handles still remove them."""
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
    calls: list[str] = []

    def note(what: str) -> Any:
        return lambda *_, **__: calls.append(what)

    layer = model[0]
    handles = [
        layer.register_forward_pre_hook(note("before forward")),
        layer.register_forward_hook(note("after forward"), with_kwargs=True, always_call=True),
        layer.register_full_backward_pre_hook(note("before backward")),
        layer.register_full_backward_hook(note("after backward")),
    ]
    sk.sparsify(model, 0.3)
    order = ["before forward", "after forward", "before backward", "after backward"]
    for each in (model, sk.densify(model)):
        calls.clear()
        each(torch.randn(2, 8, requires_grad=True)).sum().backward()
        assert calls == order
    for handle in handles:
        handle.remove()
    calls.clear()
    model(torch.randn(2, 8, requires_grad=True)).sum().backward()
    assert calls == []


def test_dense_weight_that_is_no_tensor() -> None:
    layer = sk.nn.SparseLinear(8, 4)
    with pytest.raises(RuntimeError, match="Expected weight to be a tensor. Got list"):
        layer.load_state_dict({"weight": [1.0], "bias": torch.zeros(4)})
