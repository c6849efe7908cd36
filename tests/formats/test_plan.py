"""The fixed rule, variants of formats, and plans."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.profiler import profile

from sparsekern._extension import native
from sparsekern.formats import FORMATS, LayerPlan, Plan, SparseFormat, choose_format, choose_kernel
from sparsekern.formats.plan import (
    BSR_DENSITY,
    CSR_DENSITY,
    KERNEL_DENSITY,
    forward_alone_is_dense,
    rule_in_words,
    sparse_weights,
)
from sparsekern.nn import SparseLinear
from sparsekern.patterns import Block, FanIn

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def make(name: str, density: float = 0.4, rows: int = 20, cols: int = 10) -> SparseFormat:
    mask = torch.zeros(rows, cols, dtype=torch.bool)
    mask[:, : round(density * cols)] = True
    options = {"block_shape": (1, 1)} if name == "bsr" else {}
    return FORMATS[name].from_dense(torch.randn(rows, cols), mask, **options)


def entry(stored: SparseFormat, variant: str, *names: str, **changes: Any) -> LayerPlan:
    whole = LayerPlan(names, stored.shape, stored.name, stored.master, stored.density, variant)
    return dataclasses.replace(whole, **changes)


def two_layers() -> nn.Module:
    """A csr layer called ``0`` and a masked one called ``1``."""
    layers = [SparseLinear(10, 10, density=0.2, format=name) for name in ("csr", "masked")]
    return nn.Sequential(*layers)


def plan_of(model: nn.Module, **changes: Any) -> Plan:
    layers = [
        entry(stored, stored.variants[0], *names, why="because", forward_ms={"dense": 1.5})
        for names, stored in sparse_weights(model)
    ]
    return Plan(tuple(layers), training=True, machine={"device": "abacus"}, **changes)


# The rule


def test_the_rule_is_written_down() -> None:
    """Shapes follow from the density and the kind of device, never from a clock."""
    assert CSR_DENSITY == {"cpu": 0.4, "cuda": 0.01}
    assert KERNEL_DENSITY == {"cpu": 0.55, "cuda": 0.01}
    for device, pays, does_not in ((CPU, 0.4, 0.4001), (CUDA, 0.01, 0.0101)):
        assert choose_format(pays, device) == choose_kernel(pays, device) == "csr"
        assert choose_format(does_not, device) == "masked"
        assert choose_format(pays, device, master="dense") == "masked"
        assert choose_format(pays, device, pattern=FanIn()) == "condensed"
        assert choose_format(does_not, device, pattern=FanIn()) == "masked"
    for device, pays, does_not in ((CPU, 0.55, 0.5501), (CUDA, 0.01, 0.0101)):
        assert choose_kernel(pays, device) == "csr"
        assert choose_kernel(does_not, device) == "dense"
    assert choose_format(0.001, torch.device("meta")) == "masked"


def test_blocks_on_a_gpu_fill_its_tiles() -> None:
    assert BSR_DENSITY == {"cpu": 0.5, "cuda": 0.25}
    for height, width, density in ((16, 16, 0.05), (64, 32, 0.1), (128, 64, 0.25)):
        block = Block(height, width)
        assert choose_format(density, CUDA, pattern=block) == "bsr"
        assert choose_format(density + 0.01, CUDA, pattern=block) == "masked"
    for height, width in ((8, 32), (16, 24)):
        assert choose_format(0.05, CUDA, pattern=Block(height, width)) == "masked"


def test_forward_alone() -> None:
    assert forward_alone_is_dense(0.41, 31)
    assert not forward_alone_is_dense(0.41, 32)
    assert forward_alone_is_dense(0.41, 500, convolution=True)
    assert not forward_alone_is_dense(0.4, 2)
    assert forward_alone_is_dense(0.16, 1)
    assert not forward_alone_is_dense(0.15, 1)


def test_small_batches_without_gradients_are_dense() -> None:
    """A dense master on csr kernels has the dense weight at hand: the bits are torch's own."""
    stored, bias = make("masked", 0.5), torch.randn(20)
    assert stored.running == "csr"
    few, many = torch.randn(31, 10), torch.randn(2, 16, 10)
    with torch.no_grad():
        weight = stored.parameter.detach()
        assert torch.equal(stored.linear(few, bias), F.linear(few, weight, bias))
    with profile() as found, torch.no_grad():
        stored.linear(few, bias)
    assert not any("csr_linear" in event.key for event in found.key_averages())
    for x, gradients in ((few, True), (many, False)):
        with profile() as found, torch.set_grad_enabled(gradients):
            y = stored.linear(x, bias)
        assert any("csr_linear" in event.key for event in found.key_averages())
        torch.testing.assert_close(y, F.linear(x, weight, bias))
    stored.variant = "csr"
    with profile() as found, torch.no_grad():
        stored.linear(few, bias)
    assert any("csr_linear" in event.key for event in found.key_averages())


# Variants


@pytest.mark.parametrize("name", list(FORMATS))
def test_every_variant_computes_the_layer(name: str) -> None:
    stored = make(name)
    x, weight, mask = torch.randn(3, 10), stored.to_dense().detach(), stored.mask()
    assert stored.variant == "auto"
    assert len(stored.variants) == 2
    parameter, keys = stored.parameter, list(stored.state_dict())
    for variant in (*stored.variants, "auto"):
        if variant == "panel" and not native.loaded:
            continue
        stored.variant = variant
        assert stored.running == variant or variant == "auto"
        y = stored.linear(x)
        torch.testing.assert_close(y, x @ weight.t())
        (gradient,) = torch.autograd.grad(y.sum(), parameter)
        right = torch.ones(3, 20).t() @ x
        torch.testing.assert_close(stored.active_values(gradient), right[mask])
        stored.validate()
        assert stored.parameter is parameter
        assert list(stored.state_dict()) == keys


@pytest.mark.parametrize("name", list(FORMATS))
def test_unknown_variant(name: str) -> None:
    stored = make(name)
    with pytest.raises(ValueError, match=f"Expected variant of format '{name}' to be auto or one"):
        stored.variant = "fastest"
    with pytest.raises(ValueError, match="Got 'fastest'"):
        stored.take_measured(entry(stored, "fastest", "x"))
    assert stored.variant == "auto"
    assert stored.measured is None


def test_unknown_variant_at_construction() -> None:
    with pytest.raises(ValueError, match="Expected variant of format 'masked'"):
        FORMATS["masked"](torch.zeros(2, 2), torch.ones(2, 2, dtype=torch.bool), "panel")


@pytest.mark.parametrize("name", list(FORMATS))
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_variants_survive_copies(name: str, copied: Any) -> None:
    stored = make(name)
    stored.variant = stored.variants[-1]
    again = copied(stored)
    assert (again.variant, again.running) == (stored.variant, stored.running)
    stored.take_measured(entry(stored, stored.variants[0], "x"))
    assert copied(stored).measured == stored.measured


@pytest.mark.parametrize("name", list(FORMATS))
def test_a_measured_variant_holds_for_its_density(name: str) -> None:
    """Another density: the rule; the old one again: the plan again (so that resuming agrees)."""
    stored = make(name, 0.4)
    mask = stored.mask()
    chosen = "csr" if name == "masked" else "dense"  # what the rule would not take
    stored.take_measured(entry(stored, chosen, "x"))
    assert stored.variant == chosen
    stored.set_mask(mask.roll(1))
    assert stored.variant == chosen
    fewer = mask.clone()
    fewer[:, 2:] = False
    stored.set_mask(fewer)
    assert stored.variant == "auto"
    stored.validate()
    stored.set_mask(mask)
    assert (stored.variant, stored.running) == (chosen, chosen)
    stored.validate()


@pytest.mark.parametrize("name", list(FORMATS))
def test_a_loaded_topology_decides_again(name: str) -> None:
    stored, sparser = make(name, 0.4), make(name, 0.2)
    chosen = "csr" if name == "masked" else "dense"
    stored.take_measured(entry(stored, chosen, "x"))
    before = stored.state_dict()
    before = {key: value.clone() for key, value in before.items()}
    stored.load_state_dict(sparser.state_dict())
    assert stored.variant == "auto"
    stored.load_state_dict(before)
    assert stored.variant == chosen


@pytest.mark.parametrize("name", list(FORMATS))
def test_a_wish_outlives_changes_of_density(name: str) -> None:
    stored = make(name, 0.4)
    stored.take_measured(entry(stored, stored.variants[1], "x"))
    stored.variant = stored.variants[0]
    assert stored.measured is None
    stored.set_mask(make(name, 0.1).mask())
    assert stored.variant == stored.variants[0]


def test_densities_agree_to_two_digits() -> None:
    stored = make("csr", 0.4)
    plan = entry(stored, "dense", "x", density=0.1)
    assert plan.holds_at(0.1049)
    assert not plan.holds_at(0.1051)
    assert not plan.holds_at(0.01)
    assert entry(stored, "dense", "x", density=0.0).holds_at(0.0)


def test_rule_in_words() -> None:
    assert rule_in_words(make("csr", 0.2)) == "rule: csr up to density 0.4 on cpu"
    assert rule_in_words(make("condensed", 0.2)) == "rule: condensed up to density 0.4 on cpu"
    assert rule_in_words(make("csr", 0.6)).startswith("format csr was asked for; rule: csr up to")
    masked = "rule: csr kernels up to density 0.55 on cpu"
    assert rule_in_words(make("masked", 0.6)) == f"{masked}; the master is dense"
    small = "dense for small batches without gradients"
    assert rule_in_words(make("masked", 0.5)) == f"{masked}, {small}; the master is dense"
    stored = make("csr")
    stored.variant = "dense"
    assert rule_in_words(stored).startswith("asked for; rule")


# Plans


def test_plan_round_trip() -> None:
    plan = plan_of(two_layers())
    assert Plan.from_json(plan.to_json()) == plan
    assert Plan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan
    assert [each.names for each in plan] == [("0",), ("1",)]
    assert plan["1"].format == "masked"
    assert str(plan) == "0: panel (because)\n1: dense (because)"
    with pytest.raises(KeyError):
        plan["2"]


def test_apply_sets_variants() -> None:
    model = two_layers()
    plan_of(model).apply(model)
    assert [layer.format.variant for layer in model] == ["panel", "dense"]
    assert [layer.format.measured for layer in model] == list(plan_of(model))


def test_apply_finds_layers_inside_of_wrappers() -> None:
    model = two_layers()
    plan_of(model).apply(torch.compile(model, backend="eager"))
    assert model[0].format.variant == "panel"


def test_tied_weights_have_one_entry() -> None:
    model = two_layers()
    model.append(SparseLinear.from_format(model[0].format))
    plan = plan_of(model)
    assert [each.names for each in plan] == [("0", "2"), ("1",)]
    assert plan["2"] is plan["0"]
    plan.apply(model)
    untied = two_layers()
    untied.append(SparseLinear(10, 10))
    with pytest.raises(ValueError, match=r"Expected 0, 2 to share one weight, as the plan says"):
        plan.apply(untied)


def _other_shape() -> nn.Module:
    return nn.Sequential(SparseLinear(10, 10, density=0.2, format="csr"), SparseLinear(10, 5))


def _other_format() -> nn.Module:
    return nn.Sequential(*[SparseLinear(10, 10, format="masked") for _ in range(2)])


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        (lambda: nn.Sequential(nn.Linear(10, 10)), "Got one with 0, which is no sparse layer of"),
        (lambda: two_layers()[:1], "Got one with 1, which is no sparse layer of it"),
        (lambda: nn.Sequential(*two_layers(), SparseLinear(3, 3)), "that leaves out 2"),
        (
            _other_shape,
            r"Expected 1 to have shape \(10, 10\) and format 'masked', as the plan says",
        ),
        (_other_format, "Expected 0 to have shape .* and format 'csr'.* Got .* 'masked'"),
    ],
)
def test_a_plan_of_another_model(other: Any, sentence: str) -> None:
    plan, model = plan_of(two_layers()), other()
    with pytest.raises(ValueError, match=sentence):
        plan.apply(model)
    for _, stored in sparse_weights(model):
        assert stored.variant == "auto"


def test_a_plan_with_an_unknown_variant_changes_nothing() -> None:
    model = two_layers()
    good = plan_of(model)
    bad = dataclasses.replace(good.layers[1], variant="panel")
    with pytest.raises(ValueError, match="Expected variant of format 'masked'"):
        Plan((good.layers[0], bad), True).apply(model)
    assert model[0].format.variant == "auto"


def _damaged(**changes: Any) -> dict[str, Any]:
    return {**plan_of(two_layers()).to_dict(), **changes}


def _damaged_layer(**changes: Any) -> dict[str, Any]:
    plan = plan_of(two_layers()).to_dict()
    plan["layers"][0].update(changes)
    return plan


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ([], "Expected a plan of version 1. Got 'list'"),
        ({}, "Expected a plan of version 1. Got None"),
        (_damaged(version=2), "Expected a plan of version 1. Got 2"),
        (_damaged(training=1), "Expected training of a plan to be a bool. Got 1"),
        (_damaged(layers={}), "Expected layers of a plan to be a list"),
        (_damaged(machine=None), "Expected machine of a plan to be a dict"),
        (_damaged(layers=[3]), "Expected each layer of a plan to have density, format"),
        (_damaged_layer(extra=1), "Expected each layer of a plan to have density, format"),
        (_damaged_layer(names=[]), r"Expected names of a planned layer to be a list of names"),
        (_damaged_layer(names="0"), r"Expected names of a planned layer to be a list of names"),
        (_damaged_layer(shape=[1.5]), "Expected shape of a planned layer to be a list of integers"),
        (_damaged_layer(density=2), r"Expected density of a planned layer .* in \[0, 1\]. Got 2"),
        (_damaged_layer(variant=None), "Expected variant of a planned layer to be text. Got None"),
        (_damaged_layer(inputs=[1]), "Expected inputs of a planned layer to be a list of text"),
        (
            _damaged_layer(forward_ms={"dense": float("nan")}),
            "Expected forward_ms of a planned layer to be milliseconds by variant",
        ),
    ],
)
def test_what_is_no_plan(values: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Plan.from_dict(values)


def test_text_that_is_no_json() -> None:
    with pytest.raises(ValueError, match="Expected a plan to be JSON. Got: "):
        Plan.from_json("variant: fast")


def test_another_kind_of_device_chooses_anew() -> None:
    """What was measured on one device says nothing of another; its kernels may not be there."""
    layers = [SparseLinear(32, 32, density=0.3, format=name) for name in ("masked", "csr")]
    for layer, variant in zip(layers, ("csr", "dense"), strict=True):
        layer.format.take_measured(entry(layer.format, variant, ""))
        assert layer.format.running == variant
    with FakeTensorMode():
        for layer in layers:
            layer._apply(lambda t: torch.empty(t.shape, dtype=t.dtype, device=CUDA))
            assert layer.format.measured is None
            assert layer.format.variant == "auto"
    assert layers[0].format.running == "dense"
    assert layers[0].format.index is None


def test_a_kernel_that_was_asked_for_is_forgotten_elsewhere() -> None:
    layer = SparseLinear(32, 32, density=0.3, format="csr")
    layer.format.variant = "panel"
    with FakeTensorMode():
        layer._apply(lambda t: torch.empty(t.shape, dtype=t.dtype, device=CUDA))
    assert layer.format.variant == "auto"
    assert "panel" not in layer.format.variants


@pytest.mark.parametrize("name", ["csr", "bsr"])
def test_a_plan_of_another_device_leaves_the_rule(name: str) -> None:
    """It is valid, can be saved with the model, and chooses nothing here."""
    stored = make(name)
    stored.take_measured(entry(stored, "triton", ""))
    assert stored.variant == "auto"
    assert stored.running != "triton"
    with pytest.raises(ValueError, match="Expected variant of format"):
        stored.variant = "triton"
