"""The pattern ``Block`` from ``sparsify`` and ``from_dense`` to every method."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import nn

import sparsekern as sk
from sparsekern.ops import bsr
from sparsekern.patterns import Block, Pattern
from sparsekern.prune import METHODS, Pruner
from tests.prune.test_contract import assert_same, fingerprint, make_method

BLOCK = Block(4, 8)


def make_model() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 5)
    )


def make_conv() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 1), nn.Flatten()
    )


def start(name: str, format: str = "auto") -> tuple[nn.Module, Any, Pruner]:
    model = make_model()
    method = dataclasses.replace(make_method(name, 0.25), pattern=BLOCK)
    opt = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.05)
    return model, opt, Pruner(model, opt, method, total_steps=40, format=format)


def train(model: nn.Module, opt: Any, pruner: Pruner, steps: int) -> None:
    while pruner.steps < steps:
        x = torch.randn(20, 16, generator=torch.Generator().manual_seed(pruner.steps))
        nn.functional.cross_entropy(model(x), x[:, :5].argmax(1)).backward()
        pruner.step()
        opt.zero_grad()


@pytest.mark.parametrize("format", ["auto", "csr", "bsr", "masked"])
def test_sparsify(format: str) -> None:
    model = make_model()
    dense = [p.detach().clone() for p in model.parameters()]
    report = sk.sparsify(model, 0.25, pattern=BLOCK, format=format)
    assert [row.format for row in report.layers] == ["bsr" if format == "auto" else format] * 2
    (left,) = report.left_dense
    assert left.names == ["4"]
    assert left.reason == "blocks of 4 x 8 do not divide it"
    assert "blocks of 4 x 8 do not divide it" in str(sk.explain(model))
    assert report.density == pytest.approx(0.25)
    for layer, weight in ((model[0], dense[0]), (model[2], dense[2])):
        kept = bsr.block_mask(layer.mask(), BLOCK.shape)
        sums = weight.abs().view(kept.shape[0], 4, kept.shape[1], 8).sum((1, 3))
        assert sums[kept].min() >= sums[~kept].max()
        assert torch.equal(layer.weight, weight * layer.mask())


def test_sparsify_convolutions() -> None:
    model = make_conv()
    report = sk.sparsify(model, 0.25, pattern=Block(8, 16), format="bsr")
    assert {row.format for row in report.layers} == {"bsr"}
    dense = sk.densify(model)
    x = torch.randn(2, 16, 6, 6)
    torch.testing.assert_close(model(x), dense(x))


def test_masks_that_are_given() -> None:
    model = make_model()
    mask = torch.zeros(32, 16, dtype=torch.bool)
    mask[4:8, 8:] = True
    sk.sparsify(model, mask={"0": mask}, pattern=BLOCK, format="bsr")
    assert model[0].format.values.shape == (1, 4, 8)
    broken = mask.clone()
    broken[0, 0] = True
    other = make_model()
    with pytest.raises(ValueError, match="Expected mask to keep or drop whole blocks of 4 x 8"):
        sk.sparsify(other, mask={"0": broken}, pattern=BLOCK)
    assert type(other[0]) is nn.Linear
    sk.sparsify(other, mask={"0": mask}, format="bsr")
    assert other[0].format.block_shape == (4, 4)


def test_format_bsr_needs_blocks() -> None:
    sentence = r"Expected pattern to be Block\(h, w\) with format='bsr'. Got Unstructured\(\)"
    model = make_model()
    with pytest.raises(ValueError, match=sentence):
        sk.sparsify(model, 0.2, format="bsr")
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=sentence):
        Pruner(model, opt, sk.prune.SET(density=0.2), total_steps=10, format="bsr")
    assert type(model[0]) is nn.Linear


def test_unknown_patterns() -> None:
    sentence = r"pattern to be Unstructured\(\), Block\(h, w\) or FanIn\(\). Got Pattern\(\)"
    with pytest.raises(NotImplementedError, match=sentence):
        sk.sparsify(make_model(), 0.2, pattern=Pattern())
    with pytest.raises(NotImplementedError, match="Expected pattern of set to be Unstructured"):
        sk.prune.SET(pattern=Pattern())


@pytest.mark.parametrize("format", ["auto", "csr", "bsr", "masked"])
def test_from_dense(format: str) -> None:
    linear = nn.Linear(32, 16)
    layer = sk.nn.SparseLinear.from_dense(linear, 0.25, format=format, block_shape=(4, 8))
    assert layer.density == 0.25
    bsr.block_mask(layer.mask(), (4, 8))
    made = sk.nn.SparseLinear(32, 16, density=0.5, format=format, block_shape=(4, 8))
    bsr.block_mask(made.mask(), (4, 8))
    conv = sk.nn.SparseConv2d(16, 8, 3, density=0.5, format=format, block_shape=(4, 8))
    bsr.block_mask(bsr.as_matrix(conv.mask()), (4, 8))


@pytest.mark.parametrize(
    ("options", "kind", "sentence"),
    [
        ({"density": 0.5, "format": "bsr"}, ValueError, "Expected block_shape with format='bsr'"),
        ({"density": 0.5, "block_shape": 4}, TypeError, "Expected block_shape to be two integers"),
        (
            {"density": 0.5, "block_shape": (5, 8)},
            ValueError,
            "Expected blocks of 5 x 8 to divide the outputs",
        ),
        (
            {"mask": torch.eye(16, 32).bool(), "block_shape": (4, 8), "format": "csr"},
            ValueError,
            "Expected mask to keep or drop whole blocks",
        ),
    ],
)
def test_from_dense_refuses(options: Any, kind: type[Exception], sentence: str) -> None:
    with pytest.raises(kind, match=sentence):
        sk.nn.SparseLinear.from_dense(nn.Linear(32, 16), **options)


def test_a_dense_checkpoint_keeps_the_blocks() -> None:
    layer = sk.nn.SparseLinear(32, 16, density=1.0, format="bsr", block_shape=(4, 8))
    linear = nn.Linear(32, 16)
    layer.load_state_dict(linear.state_dict())
    assert layer.format.block_shape == (4, 8)
    assert torch.equal(layer.weight, linear.weight)


@pytest.mark.parametrize("name", list(METHODS))
@pytest.mark.parametrize("format", ["auto", "masked"])
def test_methods_keep_whole_blocks(name: str, format: str) -> None:
    model, opt, pruner = start(name, format)
    before = model[0].mask()
    train(model, opt, pruner, 40)
    assert pruner.density == pytest.approx(0.25)
    for layer in (model[0], model[2]):
        bsr.block_mask(layer.mask(), BLOCK.shape)
        layer.format.validate()
        assert (layer.weight[~layer.mask()] == 0).all()
    changes = bool((before != model[0].mask()).any())
    assert changes == (name != "static")


@pytest.mark.parametrize("name", list(METHODS))
def test_methods_are_reproducible(name: str) -> None:
    runs = []
    for _ in range(2):
        model, opt, pruner = start(name)
        train(model, opt, pruner, 20)
        runs.append(fingerprint(model, opt))
    assert_same(*runs)


def test_set_does_not_grow_what_it_drops() -> None:
    model, opt, pruner = start("set")
    before = model[0].mask()
    while torch.equal(model[0].mask(), before):
        train(model, opt, pruner, pruner.steps + 1)
    after = model[0].mask()
    assert int((after & ~before).sum()) == int((before & ~after).sum()) > 0


def test_compact_ends_in_blocks() -> None:
    model, opt, pruner = start("gmp")
    train(model, opt, pruner, 35)
    state = {k: v.clone() for k, v in opt.state[model[0].format.parameter].items() if v.ndim}
    mask, weight = model[0].mask(), model[0].weight.detach()
    parameter = model[0].format.parameter
    assert [row.format for row in pruner.compact()] == ["bsr", "bsr"]
    stored = model[0].format
    assert stored.parameter is parameter
    assert stored.block_shape == BLOCK.shape
    assert torch.equal(model[0].weight, weight)
    for key, value in state.items():
        assert torch.equal(stored.active_values(opt.state[parameter][key]), value[mask])
    train(model, opt, pruner, 40)
    stored.validate()


def test_another_pattern_than_the_model_has() -> None:
    model = make_model()
    sk.sparsify(model, 0.25, pattern=BLOCK, exclude=["4"])
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    density = pytest.approx(0.25)
    with pytest.raises(ValueError, match="Expected pattern of static to be that of 0, Block"):
        Pruner(model, opt, sk.prune.Static(density=0.25), total_steps=10, exclude=["4"])
    method = sk.prune.Static(density=0.25, pattern=BLOCK)
    assert Pruner(model, opt, method, total_steps=10, exclude=["4"]).density == density
