"""The contract of every method, over everything that is registered."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
from torch import nn

from sparsekern.prune import METHODS, Clock, Method, Pruner

TOTAL = 40
NAMES = list(METHODS)
FORMATS = ["auto", "csr", "masked"]
CASES = [
    (m, f) for m in NAMES for f in FORMATS if not (METHODS[m].master == "dense" and f == "csr")
]
OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-3),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.05),
}


def make_method(name: str, density: float = 0.2) -> Method:
    fields = {field.name for field in dataclasses.fields(METHODS[name])}
    options = {"update_every": 5} if "update_every" in fields else {}
    return METHODS[name](density=density, **options)


def make_model() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 4)
    )


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(20, 16, generator=generator)
    return x, (x[:, :4].argmax(1))


def start(
    name: str, format: str, optimizer: str = "sgd", seed: int = 0
) -> tuple[nn.Module, Any, Pruner]:
    model = make_model()
    opt = OPTIMIZERS[optimizer](model.parameters())
    return (
        model,
        opt,
        Pruner(model, opt, make_method(name), total_steps=TOTAL, format=format, seed=seed),
    )


def train(model: nn.Module, opt: Any, pruner: Pruner, steps: int) -> None:
    while pruner.steps < steps:
        x, y = batch(pruner.steps)
        nn.functional.cross_entropy(model(x), y).backward()
        pruner.step()
        opt.zero_grad()


def fingerprint(model: nn.Module, opt: Any) -> list[torch.Tensor]:
    state = [v for s in opt.state.values() for v in s.values() if isinstance(v, torch.Tensor)]
    return [*model.state_dict().values(), *state]


def assert_same(a: list[torch.Tensor], b: list[torch.Tensor]) -> None:
    assert len(a) == len(b)
    assert all(x.shape == y.shape and torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize(("name", "format"), CASES)
def test_density_is_met(name: str, format: str) -> None:
    """The realised density is within one weight of the target."""
    model, opt, pruner = start(name, format)
    total = 16 * 32 + 32 * 24 + 24 * 4
    if pruner.method.master == "compact":
        assert round(pruner.density * total) == round(0.2 * total)
    train(model, opt, pruner, TOTAL)
    assert round(pruner.density * total) == round(0.2 * total)
    for layer in pruner.layers:
        layer.format.validate()
        assert layer.nnz >= 1


@pytest.mark.parametrize(("name", "format"), CASES)
@pytest.mark.parametrize("optimizer", list(OPTIMIZERS))
def test_zeros_counts_and_state(name: str, format: str, optimizer: str) -> None:
    """At every step: masked weights are exactly zero under momentum and weight decay, the count of
    compact methods never changes, grown weights start at zero with zero state."""
    model, opt, pruner = start(name, format, optimizer)
    counts = [layer.nnz for layer in pruner.layers]
    changes = 0
    for step in range(TOTAL):
        masks = [layer.mask() for layer in pruner.layers]
        updating = pruner.method.is_update(pruner.clock)
        train(model, opt, pruner, step + 1)
        for layer, old in zip(pruner.layers, masks, strict=True):
            layer.format.validate()
            new = layer.mask()
            changes += int((new != old).any())
            grown = (new & ~old)[new]
            if pruner.method.optimizer_steps_on_update and updating:
                pass  # the update follows the optimiser step, so what it grows is untouched too
            assert (layer.active_weights[grown] == 0).all()
            for key, value in opt.state[layer.format.parameter].items():
                if value.ndim:
                    assert (layer.format.active_values(value)[grown] == 0).all(), key
                    assert value.shape == layer.format.parameter.shape
        if pruner.method.master == "compact":
            assert counts == [layer.nnz for layer in pruner.layers]
    assert (changes > 0) == any(
        pruner.method.is_update(Clock(step, TOTAL)) for step in range(TOTAL)
    )


@pytest.mark.parametrize(("name", "format"), CASES)
def test_reproducible_per_seed(name: str, format: str) -> None:
    runs = []
    for seed in (0, 0, 7):
        model, opt, pruner = start(name, format, seed=seed)
        train(model, opt, pruner, TOTAL)
        runs.append(fingerprint(model, opt))
    assert_same(runs[0], runs[1])
    if METHODS[name].initial_score == "random":
        with pytest.raises(AssertionError):
            assert_same(runs[0], runs[2])


@pytest.mark.parametrize(("name", "format"), CASES)
@pytest.mark.parametrize("at", [0, 4, 5, 13])
def test_resume_is_bit_identical(name: str, format: str, at: int) -> None:
    model, opt, pruner = start(name, format)
    train(model, opt, pruner, at)
    saved = copy.deepcopy((model.state_dict(), opt.state_dict(), pruner.state_dict()))
    train(model, opt, pruner, TOTAL)

    resumed, opt2, pruner2 = start(name, format)
    resumed.load_state_dict(saved[0])
    opt2.load_state_dict(saved[1])
    pruner2.load_state_dict(saved[2])
    train(resumed, opt2, pruner2, TOTAL)
    assert_same(fingerprint(model, opt), fingerprint(resumed, opt2))


@pytest.mark.parametrize("name", NAMES)
def test_learns(name: str) -> None:
    model, opt, pruner = start(name, "auto")
    first = nn.functional.cross_entropy(model(batch(0)[0]), batch(0)[1])
    train(model, opt, pruner, TOTAL)
    assert nn.functional.cross_entropy(model(batch(0)[0]), batch(0)[1]) < first


@pytest.mark.parametrize("name", NAMES)
def test_dense_gradient_only_where_needed(name: str) -> None:
    """Layers are armed exactly for the update steps of methods that ask for it."""
    _, _, pruner = start(name, "auto")
    model, opt = pruner.model, pruner.optimizer
    for step in range(TOTAL):
        armed = [layer.format._probe is not None for layer in pruner.layers]
        wanted = "dense_grad" in pruner.method.needs and pruner.method.is_update(pruner.clock)
        assert armed == [wanted] * len(armed)
        train(model, opt, pruner, step + 1)


@pytest.mark.parametrize("name", NAMES)
def test_parameter_objects_stay(name: str) -> None:
    """An optimiser built before the Pruner trains the sparse parameters."""
    model = make_model()
    before = {id(p) for p in model.parameters()}
    opt = OPTIMIZERS["sgd"](model.parameters())
    pruner = Pruner(model, opt, make_method(name), total_steps=TOTAL)
    assert {id(p) for p in model.parameters()} == before
    assert {id(layer.format.parameter) for layer in pruner.layers} <= before


@pytest.mark.parametrize("name", NAMES)
def test_schedulers_do_not_warn(name: str, recwarn: pytest.WarningsRecorder) -> None:
    model, opt, pruner = start(name, "auto")
    schedule = torch.optim.lr_scheduler.LinearLR(opt, total_iters=TOTAL)
    for step in range(TOTAL):
        train(model, opt, pruner, step + 1)
        schedule.step()
    assert not [w for w in recwarn if "lr_scheduler" in str(w.message)]
