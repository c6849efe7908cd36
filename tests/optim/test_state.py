"""Optimiser state that follows a topology change, and parameter groups."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import sparsekern as sk
from sparsekern.nn import SparseLinear
from sparsekern.optim import move_state, param_groups, reset_state, state_bytes

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, lr=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.1, momentum=0.9, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1),
}


@pytest.mark.parametrize("format", ["csr", "masked"])
@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_state_follows_the_mask(format: str, name: str) -> None:
    layer = SparseLinear(8, 6, density=0.5, format=format)
    optimizer = OPTIMIZERS[name](layer.parameters())
    for _ in range(3):
        layer(torch.randn(4, 8)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    parameter = layer.format.parameter
    before = {
        key: value.clone()
        for key, value in optimizer.state[parameter].items()
        if isinstance(value, torch.Tensor) and value.ndim
    }
    old = layer.mask()
    dense_before = {}
    for key, value in before.items():
        dense_before[key] = torch.zeros(6, 8)
        dense_before[key][old] = layer.format.active_values(value)
    new = old.flip(0)
    left = move_state(optimizer, parameter, layer.set_mask(new))
    assert left == []
    assert before
    for key, dense in dense_before.items():
        value = optimizer.state[parameter][key]
        assert value.shape == parameter.shape
        assert torch.equal(layer.format.active_values(value), (dense * old)[new])


def test_state_of_another_count() -> None:
    layer = SparseLinear(8, 6, density=0.5, format="csr")
    optimizer = OPTIMIZERS["sgd"](layer.parameters())
    layer(torch.randn(4, 8)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    move_state(
        optimizer, layer.format.parameter, layer.set_mask(torch.ones(6, 8, dtype=torch.bool))
    )
    momentum = optimizer.state[layer.format.parameter]["momentum_buffer"]
    assert momentum.shape == (48,)
    assert int((momentum != 0).sum()) <= 24
    layer(torch.randn(4, 8)).sum().backward()
    optimizer.step()


def test_state_of_another_shape_is_left_and_named() -> None:
    layer = SparseLinear(8, 6, density=0.5, format="csr")
    optimizer = OPTIMIZERS["sgd"](layer.parameters())
    optimizer.state[layer.format.parameter] = {"odd": torch.ones(3), "step": torch.tensor(1.0)}
    assert move_state(optimizer, layer.format.parameter, layer.set_mask(layer.mask().flip(0))) == [
        "odd"
    ]


def test_reset_and_bytes() -> None:
    layer = SparseLinear(8, 6, density=0.5, format="csr", bias=False)
    optimizer = OPTIMIZERS["adam"](layer.parameters())
    assert not reset_state(optimizer, layer.format.parameter)
    layer(torch.randn(4, 8)).sum().backward()
    optimizer.step()
    assert (
        state_bytes(optimizer) == state_bytes(optimizer, layer.format.parameter) == 2 * 24 * 4 + 4
    )
    assert reset_state(optimizer, layer.format.parameter)
    assert state_bytes(optimizer) == 0


def test_param_groups_keep_the_decay_of_compact_values() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 2))
    sk.sparsify(model, 0.3, format="csr")
    decay, plain = param_groups(model, 0.1)
    assert decay["weight_decay"] == 0.1
    assert plain["weight_decay"] == 0
    assert {id(p) for p in decay["params"]} == {
        id(model[0].format.parameter),
        id(model[2].format.parameter),
    }
    assert len(plain["params"]) == 4
    with pytest.raises(ValueError, match=r"weight_decay to be at least 0 and finite\. Got -1"):
        param_groups(model, -1)


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_masked_zeros_stay_zero(name: str) -> None:
    """Momentum and weight decay never revive a masked weight."""
    layer = SparseLinear(8, 6, density=0.5, format="masked")
    optimizer = OPTIMIZERS[name](layer.parameters())
    for _ in range(5):
        layer(torch.randn(4, 8)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    layer.format.validate()
    assert torch.isfinite(layer.format.parameter).all()


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_compact_equals_masked_dense_training(name: str) -> None:
    """The same network as csr values and as a masked dense weight takes the same steps."""
    mask = torch.rand(6, 8) < 0.4
    linear = nn.Linear(8, 6)
    layers = [SparseLinear.from_dense(linear, mask=mask, format=f) for f in ("csr", "masked")]
    optimizers = [OPTIMIZERS[name](layer.parameters()) for layer in layers]
    for step in range(5):
        x = torch.randn(16, 8, generator=torch.Generator().manual_seed(step))
        for layer, optimizer in zip(layers, optimizers, strict=True):
            layer(x).sin().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    torch.testing.assert_close(layers[0].weight, layers[1].weight, atol=1e-5, rtol=1e-4)


def test_param_groups_of_what_is_no_number_or_no_model() -> None:
    model = nn.Linear(2, 2)
    for value, kind in ((float("nan"), ValueError), (float("inf"), ValueError), ("x", TypeError)):
        with pytest.raises(kind, match="Expected weight_decay to be "):
            param_groups(model, value)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"Expected model to be a torch.nn.Module\. Got int"):
        param_groups(5, 0.1)  # type: ignore[arg-type]


@pytest.mark.parametrize("format", ["csr", "masked"])
@pytest.mark.parametrize("count", ["same", "other"])
def test_the_history_of_lbfgs_starts_anew(format: str, count: str) -> None:
    """After a change it steps as a new one does, whichever of its parameters has changed."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(8, 8), nn.Tanh(), SparseLinear(8, 6, density=0.5, format=format)
    )
    x = torch.randn(32, 8)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        return loss

    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=5)
    optimizer.step(closure)
    stored = model[2].format
    mask = stored.mask().flip(0)
    if count == "other":
        mask[0] = True
    optimizer.zero_grad()
    assert move_state(optimizer, stored.parameter, stored.set_mask(mask)) == []
    before = copy.deepcopy(model.state_dict())
    optimizer.step(closure)
    after = copy.deepcopy(model.state_dict())
    model.load_state_dict(before)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=5)
    optimizer.step(closure)
    assert all(torch.equal(value, after[key]) for key, value in model.state_dict().items())
    assert reset_state(optimizer, stored.parameter)
    assert not optimizer.state
