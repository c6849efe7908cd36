"""The pattern ``FanIn`` from ``sparsify`` and ``from_dense`` to every method."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparsekern as sk
from sparsekern.formats import CondensedFormat, CsrFormat, SparseFormat
from sparsekern.ops import condensed
from sparsekern.patterns import Block, FanIn
from sparsekern.prune import METHODS, Clock, Pruner
from sparsekern.prune.method import Layer
from tests.prune.test_contract import assert_same, fingerprint, make_method, train

FORMATS = ["auto", "condensed", "csr", "masked"]


def make_model() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 5)
    )


def start(name: str, format: str = "auto") -> tuple[nn.Module, Any, Pruner]:
    model = make_model()
    method = dataclasses.replace(make_method(name, 0.25), pattern=FanIn())
    opt = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.05)
    return model, opt, Pruner(model, opt, method, total_steps=40, format=format)


@pytest.mark.parametrize("format", FORMATS)
def test_sparsify(format: str) -> None:
    model = make_model()
    dense = [p.detach().clone() for p in model.parameters()]
    report = sk.sparsify(
        model, 0.25, pattern=FanIn(), format=format, distribution="uniform", exclude=["4"]
    )
    wanted = "condensed" if format == "auto" else format
    assert [row.format for row in report.layers] == [wanted] * 2
    assert report.density == 0.25
    for layer, weight, k in ((model[0], dense[0], 4), (model[2], dense[2], 8)):
        assert condensed.fan_in(layer.mask()) == k
        kth = weight.abs().sort(1, descending=True).values[:, k - 1 : k]
        assert torch.equal(layer.mask(), weight.abs() >= kth)
        assert torch.equal(layer.weight, weight * layer.mask())
    assert wanted in str(sk.explain(model))


@pytest.mark.parametrize(("density", "k"), [(0.0, 0), (0.001, 1), (0.2, 3), (0.98, 16), (1.0, 16)])
def test_counts(density: float, k: int) -> None:
    """``round(density I)``, at least 1 above density 0."""
    model = make_model()
    report = sk.sparsify(
        model, density, pattern=FanIn(), distribution="uniform", format="condensed"
    )
    assert model[0].format.fan_in == k
    assert report.density == pytest.approx(density, abs=0.05)
    assert sk.nn.SparseLinear(16, 8, density=density, format="condensed").format.fan_in == k


def test_sparsify_convolutions() -> None:
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Conv2d(16, 32, 3, padding=1, groups=2), nn.ReLU(), nn.Conv2d(32, 32, 1), nn.Flatten()
    )
    report = sk.sparsify(model, 0.25, pattern=FanIn(), format="condensed", distribution="uniform")
    assert report.density == 0.25
    assert [layer.format.fan_in for layer in (model[0], model[2])] == [18, 8]
    x = torch.randn(2, 16, 6, 6)
    torch.testing.assert_close(model(x), sk.densify(model)(x))


def test_transposed_linears_have_rows_of_outputs() -> None:
    conv1d = pytest.importorskip("transformers.pytorch_utils").Conv1D
    net = nn.Sequential(conv1d(24, 16), conv1d(8, 24))
    report = sk.sparsify(net, 0.25, pattern=FanIn(), distribution="uniform")
    assert [layer.format.shape for layer in net] == [(24, 16), (8, 24)]
    assert [layer.format.fan_in for layer in net] == [4, 6]
    assert report.density == 0.25


@pytest.mark.parametrize("format", FORMATS)
def test_masks_that_are_given(format: str) -> None:
    model = make_model()
    mask = torch.arange(16).expand(32, 16) % 5 == 0
    sk.sparsify(model, mask={"0": mask}, pattern=FanIn(), format=format)
    assert torch.equal(model[0].mask(), mask)
    uneven = mask.clone()
    uneven[3, 1] = True
    other = make_model()
    sentence = "Expected mask to keep the same number of weights in every row. Got 4 to 5"
    with pytest.raises(ValueError, match=sentence):
        sk.sparsify(other, mask={"0": uneven}, pattern=FanIn(), format=format)
    with pytest.raises(ValueError, match=sentence):
        sk.nn.SparseLinear.from_dense(other[0], mask=uneven, format="condensed")
    assert type(other[0]) is nn.Linear


def test_format_condensed_needs_fan_in() -> None:
    model = make_model()
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    for pattern in (sk.patterns.UNSTRUCTURED, Block(1, 1)):
        sentence = r"Expected pattern to be FanIn\(\) with format='condensed'. Got "
        with pytest.raises(ValueError, match=sentence):
            sk.sparsify(model, 0.2, format="condensed", pattern=pattern)
        method = sk.prune.SET(density=0.2, pattern=pattern)
        with pytest.raises(ValueError, match=sentence):
            Pruner(model, opt, method, total_steps=10, format="condensed")
    with pytest.raises(ValueError, match=r"Expected pattern to be Block\(h, w\)"):
        sk.sparsify(model, 0.2, format="bsr", pattern=FanIn())
    assert type(model[0]) is nn.Linear


def test_from_dense_and_back() -> None:
    linear, conv = nn.Linear(32, 16), nn.Conv2d(8, 12, 3)
    layer = sk.nn.SparseLinear.from_dense(linear, 0.25, format="condensed")
    assert layer.format.fan_in == 8
    assert torch.equal(layer.to_dense().weight, linear.weight * layer.mask())
    layer.load_state_dict(linear.state_dict())
    assert torch.equal(layer.weight, linear.weight * layer.mask())
    assert sk.nn.SparseConv2d.from_dense(conv, 0.25, format="condensed").format.fan_in == 18
    made = sk.nn.SparseConv2d(8, 12, 3, density=0.1, format="condensed", init="sparse_fan_in")
    assert made.format.fan_in == 7


def test_save_and_load(tmp_path: Path) -> None:
    model, fresh = make_model(), make_model()
    sk.sparsify(model, 0.25, pattern=FanIn())
    sk.save(model, tmp_path / "model.safetensors")
    sk.load(fresh, tmp_path / "model.safetensors")
    kinds = [type(layer.format) for layer in fresh if hasattr(layer, "format")]
    assert kinds.count(CondensedFormat) >= 2
    assert_same(list(model.state_dict().values()), list(fresh.state_dict().values()))
    x = torch.randn(3, 16)
    assert torch.equal(fresh(x), model(x))


@pytest.mark.parametrize("name", list(METHODS))
@pytest.mark.parametrize("format", ["auto", "masked"])
def test_methods_keep_the_fan_in(name: str, format: str) -> None:
    """At every step; masked weights stay zero, grown ones start at zero with zero state."""
    model, opt, pruner = start(name, format)
    first, changes = [layer.mask() for layer in pruner.layers], 0
    for step in range(40):
        masks = [layer.mask() for layer in pruner.layers]
        train(model, opt, pruner, step + 1)
        for layer, old in zip(pruner.layers, masks, strict=True):
            layer.format.validate()
            new = layer.mask()
            fan_in = condensed.fan_in(new)
            assert fan_in <= condensed.fan_in(old)
            assert fan_in == condensed.fan_in(old) or pruner.method.master == "dense"
            changes += int((new != old).any())
            grown = (new & ~old)[new]
            assert (layer.active_weights[grown] == 0).all()
            assert (layer.format.to_dense()[~new] == 0).all()
            for value in opt.state[layer.format.parameter].values():
                assert value.ndim == 0 or (layer.format.active_values(value)[grown] == 0).all()
    assert pruner.density == pytest.approx(0.25, abs=0.03)
    assert [layer.nnz for layer in pruner.layers] == [layer.final_nnz for layer in pruner.layers]
    assert (
        (changes > 0)
        == (name != "static")
        == any(
            bool((old != layer.mask()).any())
            for old, layer in zip(first, pruner.layers, strict=True)
        )
    )


@pytest.mark.parametrize("name", list(METHODS))
def test_resume_is_bit_identical(name: str) -> None:
    model, opt, pruner = start(name)
    train(model, opt, pruner, 13)
    saved = copy.deepcopy((model.state_dict(), opt.state_dict(), pruner.state_dict()))
    train(model, opt, pruner, 40)
    resumed, opt2, pruner2 = start(name)
    resumed.load_state_dict(saved[0])
    opt2.load_state_dict(saved[1])
    pruner2.load_state_dict(saved[2])
    train(resumed, opt2, pruner2, 40)
    assert_same(fingerprint(model, opt), fingerprint(resumed, opt2))


WEIGHTS = torch.tensor([[5.0, 0, 1, 0, 0], [0, 6, 0, 7, 0], [2, 0, 0, 0, 8]])
GRADIENT = torch.tensor([[0.0, 1, 9, 2, 3], [4, 0, 1, 9, 2], [0, 5, 6, 7, 0]])


def layer_of(weights: Tensor, kind: type[SparseFormat]) -> Layer:
    stored = kind.from_dense(weights)
    generator = torch.Generator().manual_seed(0)
    return Layer("x", stored, stored.nnz, generator, dense_grad=GRADIENT.clone())


@pytest.mark.parametrize("kind", [CondensedFormat, CsrFormat])
def test_rigl_by_hand(kind: type[SparseFormat]) -> None:
    """Half of six: 1, 2 and 5 go, the smallest of the layer. The first output grows two, where
    the gradient is largest (the dropped 1 comes back), the last one grows one."""
    method = sk.prune.RigL(density=0.4, drop_fraction=1.0, end=1.0, pattern=FanIn())
    mask = method.update(layer_of(WEIGHTS, kind), Clock(50, 100))
    assert mask.int().tolist() == [[0, 0, 1, 0, 1], [0, 1, 0, 1, 0], [0, 0, 0, 1, 1]]


def test_set_by_hand() -> None:
    """Two of three outputs lose one weight, which is not grown again while there is another
    place."""
    method = sk.prune.SET(density=0.4, drop_fraction=0.34, pattern=FanIn())
    mask = method.update(layer_of(WEIGHTS, CondensedFormat), Clock(50, 100))
    assert mask.sum(1).tolist() == [2, 2, 2]
    assert not mask[0, 2]
    assert not mask[2, 0]
    assert mask[1].int().tolist() == [0, 1, 0, 1, 0]
    assert bool(mask[0, 0])
    assert bool(mask[2, 4])


def test_a_row_without_room_takes_back_what_it_has_dropped() -> None:
    """SET drops two weights of the first output, which has one other place."""
    weights = torch.tensor([[1.0, 1, 1, 0], [9, 9, 0, 9]])
    method = sk.prune.SET(density=0.75, drop_fraction=0.5, pattern=FanIn())
    layer = layer_of(weights, CondensedFormat)
    mask = method.update(layer, Clock(50, 100))
    assert mask.sum(1).tolist() == [3, 3]
    assert bool(mask[0, 3])
    assert torch.equal(mask[1], weights[1] != 0)


def test_gmp_by_hand() -> None:
    """From 3 of 5 to 2 of 5: the smallest of each output goes, though 2 is smaller than 5."""
    weights = torch.tensor([[5.0, 6, 7, 0, 0], [0, 1, 2, 3, 0]])
    layer = layer_of(weights, sk.formats.MaskedFormat)
    layer.final_nnz = 4
    method = sk.prune.GMP(density=0.4, begin=0.0, end=1.0, pattern=FanIn())
    mask = method.update(layer, Clock(99, 100))
    assert mask.int().tolist() == [[0, 1, 1, 0, 0], [0, 0, 1, 1, 0]]


def test_rows_that_are_too_long_are_trimmed() -> None:
    """A model of uneven rows: the counts of its method decide."""
    weights = torch.tensor([[5.0, 4, 3, 0], [1, 0, 0, 0]])
    layer = Layer("x", CsrFormat.from_dense(weights), 4, torch.Generator())
    layer.dense_grad = torch.tensor([[0.0, 0, 0, 9], [0, 3, 1, 2]])
    method = sk.prune.RigL(density=0.5, drop_fraction=0.5, end=1.0, pattern=FanIn())
    mask = method.update(layer, Clock(0, 100))
    assert mask.int().tolist() == [[1, 1, 0, 0], [0, 1, 0, 1]]


def test_compact_ends_condensed() -> None:
    model, opt, pruner = start("gmp")
    train(model, opt, pruner, 35)
    mask, weight = model[0].mask(), model[0].weight.detach()
    state = {k: v.clone() for k, v in opt.state[model[0].format.parameter].items() if v.ndim}
    parameter = model[0].format.parameter
    assert {row.format for row in pruner.compact()} == {"condensed"}
    stored = model[0].format
    assert stored.parameter is parameter
    assert torch.equal(model[0].weight, weight)
    for key, value in state.items():
        assert torch.equal(stored.active_values(opt.state[parameter][key]), value[mask])
    train(model, opt, pruner, 40)
    stored.validate()


def test_a_sparse_model_is_adopted() -> None:
    """Its density is the method's to a weight an output; uneven rows and other patterns are
    refused."""
    model = make_model()
    report = sk.sparsify(model, 0.2, pattern=FanIn())
    assert report.density != 0.2
    opt = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    with pytest.raises(ValueError, match=r"Expected pattern of static to be that of 0, FanIn\(\)"):
        Pruner(model, opt, sk.prune.Static(density=0.2), total_steps=10)
    method = sk.prune.RigL(density=0.2, update_every=2, pattern=FanIn())
    assert Pruner(model, opt, method, total_steps=10).density == report.density
    uneven = make_model()
    sk.sparsify(uneven, 0.2, format="csr")
    opt = torch.optim.SGD(uneven.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="Expected mask to keep the same number of weights in"):
        Pruner(uneven, opt, method, total_steps=10)
    sk.sparsify(dense := make_model(), 0.5, pattern=FanIn(), format="masked")
    opt = torch.optim.SGD(dense.parameters(), lr=0.1)
    gmp = sk.prune.GMP(density=0.2, update_every=2, pattern=FanIn())
    pruner = Pruner(dense, opt, gmp, total_steps=10)
    assert all(layer.final_nnz % layer.format.shape[0] == 0 for layer in pruner.layers)
