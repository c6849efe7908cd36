"""Masks that come with a model: torch.nn.utils.prune, and dicts."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import sparsekern as sk
from sparsekern.nn import SparseLinear


def model() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4)
    )


X = torch.linspace(-1, 1, 96).view(3, 32)


def test_masks_of_torch_prune_are_taken() -> None:
    """Also iterated and pruned biases; the trained Parameter objects live on."""
    net = model()
    weights = [(net[0], "weight"), (net[2], "weight")]
    prune.global_unstructured(weights, prune.L1Unstructured, amount=0.8)
    prune.random_unstructured(net[2], "weight", 0.5)
    prune.random_unstructured(net[2], "bias", 0.5)
    with torch.no_grad():
        net[0].weight_orig[0] = 0.0  # kept, though zero now
        net[0].weight_mask[0] = 1.0
    right = net(X).detach()
    masks = [net[0].weight_mask.bool(), net[2].weight_mask.bool()]
    parameters = [net[0].weight_orig, net[2].weight_orig, net[2].bias_orig]
    report = sk.sparsify(net, mask="nonzero")
    torch.testing.assert_close(net(X), right)
    assert [row.names for row in report.layers] == [["0"], ["2"], ["4"]]
    assert [row.reason for row in report.layers[:2]] == ["mask of torch.nn.utils.prune"] * 2
    for layer, mask in zip((net[0], net[2]), masks, strict=True):
        assert isinstance(layer, SparseLinear)
        assert torch.equal(layer.mask(), mask)
        assert not prune.is_pruned(layer)
    assert net[0].format.parameter is parameters[0]
    assert net[2].format.parameter is parameters[1]
    assert net[2].bias is parameters[2]
    assert not any("_orig" in key or "_mask" in key for key in net.state_dict())
    # An optimiser built before trains on.
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    net(X).square().mean().backward()
    before = net[0].format.parameter.detach().clone()
    optimizer.step()
    assert not torch.equal(before, net[0].format.parameter)


def test_layers_that_keep_their_hooks() -> None:
    """Excluded ones, ones that share their weight, and all when anything is refused."""
    net = model()
    net.add_module("twin", nn.Linear(32, 64))
    net.twin.weight = net[0].weight
    for layer in (net[0], net[2], net[4]):
        prune.l1_unstructured(layer, "weight", 0.5)
    for arguments, sentence in (
        ({"format": "coo"}, "Expected format to be one of"),
        ({"exclude": ["5x"]}, "Expected exclude to name modules"),
    ):
        with pytest.raises(ValueError, match=sentence):
            sk.sparsify(net, mask="nonzero", **arguments)
        assert all(prune.is_pruned(layer) for layer in (net[0], net[2], net[4]))
    report = sk.sparsify(net, mask="nonzero", exclude=["4"], format="csr")
    reasons = {row.names[0]: row.reason for row in report.left_dense}
    assert reasons["4"] == "excluded by '4'"
    assert reasons["0"] == "its weight is shared with twin, which has another mask or none"
    assert "shared with 0 (Linear)" in reasons["twin"]
    assert prune.is_pruned(net[0])
    assert isinstance(net[2], SparseLinear)


def test_only_pruned_layers() -> None:
    net = nn.Sequential(nn.Linear(8, 8))
    prune.l1_unstructured(net[0], "weight", 0.9)
    report = sk.sparsify(net, mask="nonzero")
    assert report.density == pytest.approx(6 / 64)
    full = nn.Sequential(nn.Linear(8, 8))
    prune.identity(full[0], "weight")
    report = sk.sparsify(full, mask="nonzero")
    assert report.layers[0].reason == "all weights kept, mask of torch.nn.utils.prune"
    assert type(full[0]) is nn.Linear
    assert not prune.is_pruned(full[0])


def test_dict_of_masks() -> None:
    net = model()
    prune.l1_unstructured(net[4], "weight", 0.5)
    masks = {
        "0.weight": torch.rand(64, 32) < 0.2,
        "4": torch.rand(4, 64) < 0.2,
    }
    weight, pruned = net[0].weight.detach().clone(), net[4].weight.detach().clone()
    report = sk.sparsify(net, mask=masks)
    assert torch.equal(net[0].weight, weight * masks["0.weight"])
    assert torch.equal(net[4].weight, pruned * masks["4"])
    assert torch.equal(net[4].mask(), masks["4"])
    assert type(net[2]) is nn.Linear
    assert [row.reason for row in report.left_dense] == ["no mask given"]
    assert report.density == pytest.approx(
        sum(int(m.sum()) for m in masks.values()) / (64 * 32 + 4 * 64)
    )


def test_bad_masks() -> None:
    net = model()
    net.add_module("twin", nn.Linear(32, 64))
    net.twin.weight = net[0].weight
    nn.utils.parametrizations.weight_norm(net[2])
    good = torch.ones(64, 32, dtype=torch.bool)
    for mask, kind, sentence in (
        ({"9": good}, ValueError, r"layers that can be sparse. Got '9'\."),
        ({"1": good}, ValueError, r"layers that can be sparse. Got '1'\."),
        ({"2": good}, ValueError, "Got '2', its weight is computed from others"),
        ({"0": good.float()}, TypeError, "Expected mask of 0 to have dtype torch.bool"),
        ({"0": good[1:]}, ValueError, r"Expected mask of 0 to have shape \(64, 32\)"),
        ({"0": None}, TypeError, "Expected mask of 0 to be a tensor"),
        ({"0": good, "twin": ~good}, ValueError, "Expected one mask for 0, twin, which share"),
        ({}, ValueError, "Expected a model with Linear or Conv2d layers to convert. Got none"),
        (good, ValueError, "Expected mask to be 'nonzero' or a dict of tensors. Got a "),
    ):
        with pytest.raises(kind, match=sentence):
            sk.sparsify(net, mask=mask)
        assert type(net[0]) is nn.Linear
    sk.sparsify(net, mask={"0": good, "twin": good}, format="csr")
    assert net[0].format is net.twin.format


def test_convolutions() -> None:
    """Masks of convolutions are taken too; the first one stays what it is."""
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 3))
    for layer in (net[0], net[2]):
        prune.l1_unstructured(layer, "weight", 0.8)
    x = torch.randn(2, 3, 8, 8)
    right, mask = net(x).detach(), net[2].weight_mask.bool()
    report = sk.sparsify(net, mask="nonzero")
    torch.testing.assert_close(net(x), right)
    assert torch.equal(net[2].mask(), mask)
    assert "the first convolution" in report.left_dense[0].reason
    assert prune.is_pruned(net[0])
