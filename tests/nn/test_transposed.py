"""The Conv1D of Hugging Face's GPT-2: its weight is [in, out]."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

import sparsekern as sk
from sparsekern.nn import SparseTransposedLinear
from sparsekern.ops import mask as mask_ops

Conv1D = pytest.importorskip("transformers.pytorch_utils").Conv1D


def model() -> nn.Sequential:
    return nn.Sequential(Conv1D(24, 12), nn.ReLU(), Conv1D(12, 24))


@pytest.mark.parametrize("format", ["csr", "masked"])
def test_converts_both_ways(format: str) -> None:
    net, x = model(), torch.randn(2, 3, 12)
    parameters = {id(p) for p in net.parameters()}
    pruned = copy.deepcopy(net)
    report = sk.sparsify(net, 0.25, format=format)
    assert {id(p) for p in net.parameters()} == parameters
    layer = net[0]
    assert isinstance(layer, SparseTransposedLinear)
    assert report.layers[0].shape == layer.mask().shape == layer.weight.shape == (12, 24)
    assert (layer.nx, layer.nf, layer.in_features, layer.out_features) == (12, 24, 12, 24)
    for sparse, dense in zip(net[::2], pruned[::2], strict=True):
        dense.weight.data *= sparse.mask()
        assert torch.equal(sparse.weight, dense.weight)
    torch.testing.assert_close(net(x), pruned(x))
    net(x).square().sum().backward()
    pruned(x).square().sum().backward()
    torch.testing.assert_close(
        layer.format.active_values(layer.format.parameter.grad),
        pruned[0].weight.grad.t()[layer.mask().t()],
    )
    back = sk.densify(net.eval())
    assert type(back[0]) is Conv1D
    assert not back[0].training
    assert torch.equal(back[0].weight, layer.weight)
    torch.testing.assert_close(back(x), net(x))


def test_masks_checkpoints_and_copies(tmp_path: Path) -> None:
    net, x = model(), torch.randn(3, 12)
    sk.sparsify(net, 0.25, format="csr")
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(other(x), net(x))
    sk.save(net, tmp_path / "m")
    fresh = model()
    sk.load(fresh, tmp_path / "m")
    assert isinstance(fresh[0], SparseTransposedLinear)
    assert torch.equal(fresh(x), net(x))
    sk.save(model(), tmp_path / "dense")
    sk.load(fresh, tmp_path / "dense")
    assert type(fresh[0]) is Conv1D
    dense, layer = Conv1D(24, 12), net[0]
    mask = layer.mask().flip(0)
    layer.set_mask(mask)
    packed = copy.deepcopy(layer)
    packed.set_mask(mask_ops.pack_bits(mask.flip(1)))
    assert torch.equal(packed.mask(), mask.flip(1))
    assert torch.equal(layer.mask(), mask)
    layer.load_state_dict(dense.state_dict())
    assert torch.equal(layer.weight, dense.weight * mask)
    with pytest.raises(RuntimeError, match=r"weight to have shape \(12, 24\). Got \(24, 12\)"):
        layer.load_state_dict(Conv1D(12, 24).state_dict())
    with pytest.raises(AttributeError, match="to be changed by set_mask"):
        layer.weight = dense.weight
    with pytest.raises(TypeError, match="Expected mask to be a tensor"):
        layer.set_mask(None)
