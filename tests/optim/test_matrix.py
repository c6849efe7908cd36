"""Optimisers that need matrices are refused for compact values, and only there."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.optim import Optimizer

import sparsekern as sk
from sparsekern.optim import MATRIX_OPTIMIZERS, check_optimizer
from sparsekern.prune import GMP, Pruner, Static


class LARS(torch.optim.SGD):
    """Stands for the many implementations of this name."""


class MyMuon(torch.optim.Muon):
    """A subclass is found through its base."""


def model() -> nn.Sequential:
    return nn.Sequential(nn.Linear(16, 32, bias=False), nn.ReLU(), nn.Linear(32, 8, bias=False))


KINDS = {"muon": torch.optim.Muon, "subclass": MyMuon, "lars": LARS} | {
    "adafactor": torch.optim.Adafactor
}


def build(kind: str, net: nn.Module) -> Optimizer:
    return KINDS[kind](net.parameters(), lr=0.01)


@pytest.mark.parametrize("kind", list(KINDS))
def test_refused_for_compact_before_anything_changes(kind: str) -> None:
    net = model()
    optimizer = build(kind, net)
    sentence = (
        rf"for the compact values of '0'\. Got {KINDS[kind].__name__}, which .*: use dense "
        r"masters \(format='masked'\)"
    )
    for options in ({}, {"format": "csr"}):
        with pytest.raises(NotImplementedError, match=sentence):
            Pruner(net, optimizer, Static(density=0.1), total_steps=10, **options)
        assert type(net[0]) is nn.Linear
    sk.sparsify(net, 0.1)
    with pytest.raises(NotImplementedError, match=sentence):
        check_optimizer(optimizer, net)
    with pytest.raises(NotImplementedError, match=sentence):
        Pruner(net, optimizer, Static(density=0.1), total_steps=10)


@pytest.mark.parametrize("kind", list(KINDS))
def test_works_with_dense_masters(kind: str) -> None:
    net = model()
    optimizer = build(kind, net)
    pruner = Pruner(net, optimizer, Static(density=0.1), total_steps=10, format="masked")
    check_optimizer(optimizer, net)
    for _ in range(3):
        net(torch.randn(4, 16)).square().mean().backward()
        pruner.step()
        optimizer.zero_grad()
    for layer in pruner.layers:
        layer.format.validate()
        assert torch.isfinite(layer.format.parameter).all()


def test_masters_do_not_become_compact_under_it() -> None:
    net = model()
    optimizer = build("muon", net)
    pruner = Pruner(net, optimizer, GMP(density=0.1, update_every=1, end=0.3), total_steps=10)
    for _ in range(5):
        net(torch.randn(4, 16)).square().mean().backward()
        pruner.step()
        optimizer.zero_grad()
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(NotImplementedError, match="Got Muon, which orthogonalises"):
        pruner.compact()
    assert net.state_dict().keys() == before.keys()


def test_only_what_the_optimizer_holds_counts() -> None:
    net = nn.Sequential(nn.Linear(16, 32), nn.Linear(32, 8, bias=False))
    sk.sparsify(net, 0.1, exclude=["1"])
    check_optimizer(torch.optim.Muon([net[1].weight]), net)
    # At the densities where the rule keeps dense masters, nothing is refused.
    dense = model()
    Pruner(dense, build("muon", dense), Static(density=0.6), total_steps=10)


def test_element_wise_ones_pass_and_users_add_names(monkeypatch: pytest.MonkeyPatch) -> None:
    class Factored(torch.optim.SGD):
        pass

    net = model()
    sk.sparsify(net, 0.1)
    optimizer = Factored(net.parameters())
    check_optimizer(optimizer, net)
    monkeypatch.setattr(MATRIX_OPTIMIZERS, "_entries", {**MATRIX_OPTIMIZERS._entries})
    MATRIX_OPTIMIZERS.add("Factored", "factors something")
    with pytest.raises(NotImplementedError, match="Got Factored, which factors something"):
        check_optimizer(optimizer, net)
