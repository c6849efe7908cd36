"""Capturing what layers are called with, and timing them, without changing anything."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparsekern._extension import native
from sparsekern.formats.plan import DENSE_LAYER
from sparsekern.nn import SparseLinear, measure
from sparsekern.nn.measure import Call, capture, take_turns, time_layer


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "SECONDS", 0.0)


class Wild(nn.Module):
    """Everything a forward pass may change: statistics, random numbers, flags, a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = SparseLinear(6, 8, density=0.5, format="csr")
        self.norm = nn.BatchNorm1d(8)
        self.dropout = nn.Dropout(0.5)
        self.second = SparseLinear(8, 8, density=0.5, format="masked")
        self.register_buffer("seen", torch.zeros(1))
        self.register_buffer("swapped", torch.zeros(2))

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        self.seen += 1
        self.swapped = self.swapped + random.random()
        self.norm.train()
        x = self.dropout(self.norm(self.first(x * scale)))
        return self.second(self.second(x[:3]))


def state_of(model: nn.Module) -> list[Any]:
    tensors = [value.clone() for value in (*model.buffers(), *model.parameters())]
    grads = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    flags = [module.training for module in model.modules()]
    hooks = [len(module._forward_pre_hooks) for module in model.modules()]
    return [tensors, grads, flags, hooks, torch.get_rng_state(), random.getstate()]


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and torch.equal(a, b)
    if isinstance(a, list):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("mode", [True, False])
def test_capture_changes_nothing(training: bool, mode: bool) -> None:
    model = Wild().train(mode)
    model.second(torch.randn(2, 8)).sum().backward()
    x = torch.randn(5, 6)
    before, buffers = state_of(model), list(model.buffers())
    calls = capture(model, x, [model.first, model.second], training)
    assert same(state_of(model), before)
    assert all(a is b for a, b in zip(buffers, model.buffers(), strict=True))
    assert [str(call) for call in calls[model.first]] == ["float32[5, 6]"]
    assert [str(call) for call in calls[model.second]] == ["float32[3, 8]"] * 2
    assert not calls[model.first][0].requires_grad
    assert calls[model.second][0].requires_grad is training


def test_a_failing_model_is_left_as_it_was() -> None:
    model, x = Wild(), torch.randn(5, 7)
    before = state_of(model)
    with pytest.raises(ValueError, match="Expected x to have 6 features"):
        capture(model, x, [model.first], True)
    assert same(state_of(model), before)


def test_armed_gradients_stay_armed() -> None:
    model = Wild()
    model.first.format.arm_dense_grad()
    time_layer(model.first, Call.of(torch.randn(4, 6)), True)
    capture(model, torch.randn(5, 6), [model.first], True)
    assert model.first.format.take_dense_grad() is None  # armed, but no backward pass came
    model.first.format.arm_dense_grad()
    model(torch.randn(5, 6)).sum().backward()
    assert model.first.format.take_dense_grad().shape == (8, 6)


@pytest.mark.parametrize(
    "example",
    [
        torch.ones(4, 6),
        (torch.ones(4, 6),),
        [torch.ones(4, 6), 2.0],
        {"x": torch.ones(4, 6), "scale": 2.0},
    ],
    ids=["tensor", "tuple", "list", "mapping"],
)
def test_kinds_of_examples(example: Any) -> None:
    model = Wild()
    calls = capture(model, example, [model.first], False)
    assert [call.shape for call in calls[model.first]] == [(4, 6)]


def test_another_kind_of_example() -> None:
    with pytest.raises(TypeError, match="Expected example to be a tensor, a tuple .* Got str"):
        capture(Wild(), "x", [], True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_calls_are_made_again(dtype: torch.dtype) -> None:
    nhwc = torch.randn(2, 3, 4, 5).to(dtype).to(memory_format=torch.channels_last)
    again = Call.of(nhwc.requires_grad_()).make()
    assert (again.shape, again.stride(), again.dtype) == (nhwc.shape, nhwc.stride(), dtype)
    assert again.requires_grad
    expanded = torch.zeros(1, 4, dtype=dtype).expand(3, 4)
    assert Call.of(expanded).make().shape == (3, 4)


@pytest.mark.parametrize("name", ["csr", "masked"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_times_of_a_layer(name: str, dtype: torch.dtype) -> None:
    layer = SparseLinear(6, 8, density=0.5, format=name, dtype=dtype)
    layer.register_forward_hook(lambda *_: pytest.fail("a hook of the user has run"))
    x = torch.randn(4, 6, dtype=dtype)
    before = state_of(layer)
    times = time_layer(layer, Call.of(x), training=True)
    assert same(state_of(layer), before)
    assert layer.format.variant == "auto"
    assert set(times) == {"forward", "forward_backward"}
    able = set(layer.format.variants) - (set() if native.loaded else {"panel"})
    for ms in times.values():
        assert set(ms) >= {*able, DENSE_LAYER}
        assert all(value > 0 for value in ms.values())
    assert set(time_layer(layer, Call.of(x), False)) == {"forward"}


def test_a_variant_that_cannot_run_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = SparseLinear(6, 8, density=0.5, format="csr", bias=False)
    monkeypatch.setattr(native, "path", None)
    times = time_layer(layer, Call.of(torch.randn(4, 6)), training=True)
    assert set(times["forward"]) == {"dense", "reference", DENSE_LAYER}


def test_frozen_layers_have_no_backward_pass() -> None:
    layer = SparseLinear(6, 8, density=0.5, format="csr").requires_grad_(False)
    x = torch.randn(4, 6)
    assert set(time_layer(layer, Call.of(x), True)) == {"forward"}
    assert set(time_layer(layer, Call.of(x.requires_grad_()), True)) == {
        "forward",
        "forward_backward",
    }


def test_a_plain_layer_is_timed_alone() -> None:
    layer = nn.Conv2d(2, 3, 3)
    times = time_layer(layer, Call.of(torch.randn(1, 2, 5, 5)), training=True)
    assert {which: set(ms) for which, ms in times.items()} == {
        "forward": {DENSE_LAYER},
        "forward_backward": {DENSE_LAYER},
    }
    assert layer.weight.grad is None


def test_autocast_casts_each_time() -> None:
    """The plain layer's weight is cast in every turn, as in every training step."""
    cast = []
    layer = nn.Linear(6, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        layer(torch.randn(4, 6))
        before = layer.weight._version
        run = measure._forward(layer, torch.randn(4, 6))
        with torch.profiler.profile() as profile:
            run(), run()
    cast = [event for event in profile.events() if event.name == "aten::_to_copy"]
    assert len(cast) >= 4  # the weight and the input, twice
    assert layer.weight._version == before


def test_contenders_take_turns() -> None:
    order: list[str] = []
    runs = {name: (lambda name=name: order.append(name)) for name in "ab"}
    taken = take_turns(runs, 0.0, rounds=(3, 9), warm_up=1)
    assert order == ["a", "b"] * 4
    assert {name: len(times) for name, times in taken.items()} == {"a": 3, "b": 3}
    assert len(take_turns(runs, 60.0, rounds=(3, 5))["a"]) == 5
