"""Masked optimisers over models whose layers hold the masks, and under a Pruner."""

from __future__ import annotations

import pytest
import torch

import sparsekern as sk
from sparsekern.formats import MaskedFormat
from sparsekern.optim import MaskedAdamW, MaskedSGD
from sparsekern.optim.masked import keeps_zeros
from sparsekern.prune import GMP, SET, Pruner, RigL, Static
from tests.optim.masked_cases import (
    STATEFUL,
    backward,
    network,
)

METHODS = {
    "static": lambda: Static(density=0.3),
    "set": lambda: SET(density=0.3, update_every=3),
    "rigl": lambda: RigL(density=0.3, update_every=3),
    "gmp": lambda: GMP(density=0.3, update_every=2, end=0.6),
}


@pytest.mark.parametrize("name", list(STATEFUL))
@pytest.mark.parametrize("method", list(METHODS))
def test_under_a_pruner(method: str, name: str) -> None:
    """Dense masters under every method: the steps of torch's optimiser under the same Pruner."""
    ours, theirs, options = STATEFUL[name]
    options = {**options, "maximize": False, "lr": 0.01}
    models = [network(), network()]
    optimizers = [
        ours(models[0].parameters(), model=models[0], **options),
        theirs(models[1].parameters(), **options),
    ]
    pruners = [
        Pruner(model, optimizer, METHODS[method](), total_steps=20, format="masked")
        for model, optimizer in zip(models, optimizers, strict=True)
    ]
    for step in range(20):
        for model, optimizer, pruner in zip(models, optimizers, pruners, strict=True):
            backward(model, step)
            pruner.step()
            optimizer.zero_grad()
        for layer, twin in zip(*(pruner.layers for pruner in pruners), strict=True):
            layer.format.validate()
            assert torch.equal(layer.mask(), twin.mask()), step
            torch.testing.assert_close(
                layer.format.weight, twin.format.weight, rtol=1e-4, atol=1e-5
            )
    for layer in pruners[0].layers:
        for value in optimizers[0].state[layer.format.weight].values():
            # A topology update after the last step leaves that to the next one.
            assert value.ndim == 0 or not value[~layer.mask()].any()


def test_pruner_masks_nothing_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(MaskedFormat, "remask_", lambda self: calls.append(self))
    for ours, expected in ((MaskedSGD, 0), (torch.optim.SGD, 3)):
        model, more = network(), {}
        if ours is MaskedSGD:
            more = {"model": model}
        optimizer = ours(model.parameters(), lr=0.1, **more)
        pruner = Pruner(model, optimizer, Static(density=0.3), total_steps=5, format="masked")
        backward(model, 0)
        calls.clear()
        pruner.step()
        assert len(calls) == expected
        assert len(keeps_zeros(optimizer)) == 3 - expected
    # Masks that were given may be others than the formats': the Pruner stays careful.
    model = network()
    pruner = Pruner(
        *(model, MaskedSGD(model.parameters(), lr=0.1), Static(density=0.3)),
        total_steps=5,
        format="masked",
    )
    assert keeps_zeros(pruner.optimizer) == set()


@pytest.mark.parametrize("name", list(STATEFUL))
def test_compact_values_are_updated_densely(name: str) -> None:
    """An optimiser that was built over the dense model, then compact rows, then a step."""
    ours, theirs, options = STATEFUL[name]
    models = [network(), network()]
    for model, make in zip(models, (ours, theirs), strict=True):
        more = {"model": model} if make is ours else {}
        optimizer = make(model.parameters(), **options, **more)
        method = GMP(density=0.1, update_every=1, end=0.3)
        pruner = Pruner(model, optimizer, method, total_steps=12)
        for step in range(12):
            if step == 6:
                assert pruner.compact()
            backward(model, step)
            pruner.step()
            optimizer.zero_grad()
        if make is ours:
            masters = [m.weight for m in model.modules() if isinstance(m, MaskedFormat)]
            assert keeps_zeros(optimizer) == {id(weight) for weight in masters}
            assert len(masters) < 3
    for p, q in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-5)


def test_layers_that_become_sparse_later_and_change() -> None:
    model = network()
    optimizer = MaskedAdamW(model.parameters(), model=model, lr=0.1)
    backward(model, 0)
    optimizer.step()
    assert all(optimizer.mask(p) is None for p in model.parameters())
    optimizer.zero_grad()
    sk.sparsify(model, 0.4, format="masked")
    weight = model[0].format.weight
    optimizer.state.clear()
    assert torch.equal(optimizer.mask(weight), model[0].mask())
    backward(model, 1)
    optimizer.step()
    model[0].set_mask(model[0].mask().flip(0))
    assert torch.equal(optimizer.mask(weight), model[0].mask())
    backward(model, 2)
    optimizer.step()
    model[0].format.validate()
    for value in optimizer.state[weight].values():
        assert value.ndim == 0 or not value[~model[0].mask()].any()
