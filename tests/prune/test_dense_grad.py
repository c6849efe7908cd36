"""Masks chosen during the backward pass: the same ones, with one dense gradient alive at a time."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import Tensor, nn

from sparsekern.nn import sparse_layers
from sparsekern.patterns import UNSTRUCTURED, Block, FanIn, Pattern
from sparsekern.prune import SET, Pruner, RigL
from sparsekern.prune.method import Clock, Layer

PATTERNS = [UNSTRUCTURED, Block(4, 4), FanIn()]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    sizes = (16, 32, 32, 8)
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(sizes):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers)


def pruner_of(model: nn.Module, one_backward: bool, pattern: Pattern, format: str) -> Pruner:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    method = RigL(density=0.25, update_every=3, pattern=pattern)
    return Pruner(
        model, optimizer, method, total_steps=40, format=format, one_backward=one_backward
    )


def train(model: nn.Module, pruner: Pruner) -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(15):
        step(model, pruner, torch.randn(20, 16, generator=generator))


def trained(model: nn.Module, one_backward: bool, pattern: Pattern, format: str) -> Pruner:
    pruner = pruner_of(model, one_backward, pattern, format)
    train(model, pruner)
    return pruner


def step(model: nn.Module, pruner: Pruner, x: Tensor) -> None:
    model(x).square().mean().backward()
    pruner.step()
    pruner.optimizer.zero_grad()


@pytest.mark.parametrize("format", ["auto", "masked"])
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_the_same_training(pattern: Pattern, format: str) -> None:
    dense = network()
    models = [copy.deepcopy(dense) for _ in range(2)]
    pruners = [trained(m, e, pattern, format) for m, e in zip(models, (False, True), strict=True)]
    late, early = (model.state_dict() for model in models)
    assert all(torch.equal(early[key], late[key]) for key in early)
    moments = [[state["momentum_buffer"] for state in p.optimizer.state.values()] for p in pruners]
    assert all(torch.equal(a, b) for a, b in zip(*moments, strict=True))


@pytest.mark.parametrize(("one_backward", "most"), [(False, 3), (True, 1)])
def test_how_many_dense_gradients_live(
    one_backward: bool, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted whenever a mask is chosen."""
    model, alive = network(), []
    pruner = pruner_of(model, one_backward, UNSTRUCTURED, "auto")
    update = RigL.update

    def counting(self: RigL, layer: Layer, clock: Clock) -> Tensor:
        probes = [each.format._probe for each in pruner.layers]
        waiting = sum(probe is not None and probe.grad is not None for probe in probes)
        alive.append(waiting + sum(each.dense_grad is not None for each in pruner.layers))
        return update(self, layer, clock)

    monkeypatch.setattr(RigL, "update", counting)
    train(model, pruner)
    assert (max(alive), len(alive)) == (most, 4 * 3)
    assert all(layer.dense_grad is None for layer in pruner.layers)


def test_a_second_backward_pass_is_refused() -> None:
    model = network()
    pruner = trained(model, True, UNSTRUCTURED, "auto")
    while not pruner.method.is_update(pruner.clock):
        step(model, pruner, torch.randn(4, 16))
    masks = [layer.mask() for layer in sparse_layers(model).values()]
    model(torch.randn(4, 16)).sum().backward()
    with pytest.raises(RuntimeError, match="Expected one backward pass before pruner.step"):
        model(torch.randn(4, 16)).sum().backward()
    after = [layer.mask() for layer in sparse_layers(model).values()]
    assert all(torch.equal(a, b) for a, b in zip(masks, after, strict=True))


def test_a_layer_that_no_backward_pass_reached() -> None:
    model = network()
    pruner = trained(model, True, UNSTRUCTURED, "auto")
    while not pruner.method.is_update(pruner.clock):
        step(model, pruner, torch.randn(4, 16))
    with pytest.raises(RuntimeError, match=r"Expected a backward pass through 0 before pruner"):
        pruner.step()
    step(model, pruner, torch.randn(4, 16))  # it was asked for again


def test_an_overflow_waits() -> None:
    model = network()
    pruner = trained(model, True, UNSTRUCTURED, "auto")
    while not pruner.method.is_update(pruner.clock):
        step(model, pruner, torch.randn(4, 16))
    masks = [layer.mask() for layer in sparse_layers(model).values()]
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    for factor, changes in ((float("inf"), False), (1.0, True)):
        loss = model(torch.randn(20, 16)).square().mean() * factor
        scaler.scale(loss).backward()
        pruner.step(scaler=scaler)
        scaler.update()
        pruner.optimizer.zero_grad()
        now = [layer.mask() for layer in sparse_layers(model).values()]
        same = all(torch.equal(a, b) for a, b in zip(masks, now, strict=True))
        assert same != changes


def test_methods_that_cannot() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="that grows by the dense gradient. Got set"):
        Pruner(model, optimizer, SET(density=0.5), total_steps=9, one_backward=True)

    class Late(RigL):
        optimizer_steps_on_update = True

    with pytest.raises(NotImplementedError, match="replaces an optimiser step. Got rigl, which"):
        Pruner(model, optimizer, Late(density=0.5), total_steps=9, one_backward=True)
    assert not sparse_layers(model)
