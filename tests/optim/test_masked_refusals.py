"""What masked optimisers refuse: a sentence, and nothing has changed."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import sparsekern as sk
from sparsekern.optim import MaskedAdamW, MaskedOptimizer, MaskedSGD
from tests.optim.masked_cases import (
    MASKED,
    give,
    gradients,
    network,
    weights,
)


def _refused(kind: type[Exception], sentence: str, make: Callable[[], Any]) -> None:
    with pytest.raises(kind) as error:
        make()
    assert str(error.value).startswith(sentence), str(error.value)


@pytest.mark.parametrize("ours", [MaskedSGD, MaskedAdamW])
def test_masks_that_do_not_fit(ours: type[MaskedOptimizer]) -> None:
    params, masks = weights()
    p, good = params[0], masks[params[0]]
    optimizer = ours(params, masks=masks)
    stranger = nn.Parameter(torch.ones(33, 41))
    cases: list[tuple[Any, type[Exception], str]] = [
        ({p: good.t()}, ValueError, "Expected mask to have shape (33, 41). Got (41, 33)"),
        ({p: good.float()}, TypeError, "Expected mask to have dtype torch.bool. Got torch.float32"),
        ({p: good.to("meta")}, ValueError, "Expected mask to be on cpu like weight. Got meta"),
        ({p: [True]}, TypeError, "Expected mask to be a tensor. Got list"),
        ({stranger: good}, ValueError, "Expected masks to name parameters of the optimizer. Got"),
        ({"0": good}, ValueError, "Expected masks to name parameters of the optimizer. Got '0'"),
        ([good], TypeError, "Expected masks to map parameters to bool tensors. Got list"),
    ]
    for wrong, kind, sentence in cases:
        _refused(kind, sentence, lambda: ours(params, masks=wrong))  # noqa: B023
        both = {params[1]: ~masks[params[1]], **wrong} if isinstance(wrong, dict) else wrong
        _refused(kind, sentence, lambda: optimizer.set_masks(both))  # noqa: B023
    assert all(torch.equal(optimizer.mask(q), masks[q]) for q in params[:MASKED])
    model = network()
    sk.sparsify(model, 0.4, format="masked")
    weight = model[0].format.weight
    _refused(
        ValueError,
        "Expected masks to name parameters that have none in the model. Got one of shape (40, 24)",
        lambda: ours(model.parameters(), model=model, masks={weight: model[0].mask()}),
    )


@pytest.mark.parametrize(
    ("make", "kind", "sentence"),
    [
        (lambda p: MaskedAdamW(p, amsgrad=True), NotImplementedError, "Expected amsgrad to be Fal"),
        (lambda p: MaskedAdamW(p, lr=-1.0), ValueError, "Expected lr to be at least 0 and finite."),
        (lambda p: MaskedAdamW(p, betas=(0.9, 1.0)), ValueError, "Expected beta2 to be below 1."),
        (lambda p: MaskedAdamW(p, betas=0.9), TypeError, "Expected betas to be two numbers. Got 0"),
        (lambda p: MaskedSGD(p, torch.ones(2)), ValueError, "Expected lr to have one element. Got"),
        (lambda p: MaskedSGD(p, lr="x"), TypeError, "Expected lr to be a number. Got 'x'"),
        (lambda p: MaskedAdamW(p, eps=-1.0), ValueError, "Expected eps to be at least 0 and fin"),
        (
            lambda p: MaskedAdamW(p, weight_decay="x"),
            TypeError,
            "Expected weight_decay to be a num",
        ),
        (lambda p: MaskedSGD(p, lr=float("nan")), ValueError, "Expected lr to be at least 0 and"),
        (lambda p: MaskedSGD(p, momentum=-0.1), ValueError, "Expected momentum to be at least 0"),
        (lambda p: MaskedSGD(p, dampening=None), ValueError, "Expected dampening to be a finite"),
        (lambda p: MaskedSGD(p, nesterov=True), ValueError, "Expected a momentum above 0 and no"),
        (lambda p: MaskedSGD(p, masked="keep"), ValueError, "Expected masked to be one of zero, "),
        (lambda p: MaskedSGD(p, clip_norm=-1.0), ValueError, "Expected clip_norm to be at least 0"),
        (lambda p: MaskedSGD(p, model=3), TypeError, "Expected model to be a torch.nn.Module. Got"),
    ],
)
def test_options_that_cannot_be(make: Any, kind: type[Exception], sentence: str) -> None:
    _refused(kind, sentence, lambda: make(weights()[0]))


def test_options_of_groups_and_of_states_are_checked() -> None:
    params, _ = weights()
    optimizer = MaskedAdamW(params[:1])
    _refused(
        ValueError,
        "Expected lr to be at least 0",
        lambda: optimizer.add_param_group({"params": params[1:2], "lr": -1.0}),
    )
    assert len(optimizer.param_groups) == 1
    state = torch.optim.AdamW(params[:1], amsgrad=True, lr=0.5).state_dict()
    _refused(
        NotImplementedError,
        "Expected amsgrad to be False",
        lambda: optimizer.load_state_dict(state),
    )
    assert optimizer.param_groups[0]["lr"] == 1e-3


def test_gradients_and_states_that_do_not_fit() -> None:
    """Everything is checked before the first weight changes."""
    for ours in (MaskedSGD, MaskedAdamW):
        params, masks = weights()
        optimizer = ours(params, masks=masks)
        give(params, next(gradients(1)))
        optimizer.step()
        before = [p.detach().clone() for p in params]
        good = params[3].grad
        params[3].grad = torch.ones(20_000).to_sparse()
        _refused(
            RuntimeError, "Expected gradients to be dense and real. Got a sparse", optimizer.step
        )
        params[3].grad = good
        name = optimizer.state_names[-1]
        optimizer.param_groups[0]["momentum"] = 0.9
        optimizer.state[params[3]][name] = torch.zeros(3)
        _refused(
            *(
                ValueError,
                f"Expected {name} to have the shape of its parameter, (20000,). Got (3,)",
            ),
            optimizer.step,
        )
        optimizer.state[params[3]].pop(name)
        optimizer.state[params[3]].clear()
        params[2].data = torch.zeros(3)
        params[2].grad = torch.zeros(3)
        optimizer.state[params[2]].clear()
        _refused(
            *(ValueError, "Expected the mask of a parameter to have its shape. Got one of 9 bytes"),
            optimizer.step,
        )
        assert all(
            torch.equal(p, b) for p, b in zip(params, before, strict=True) if p is not params[2]
        )
    weight = nn.Parameter(torch.ones(2, dtype=torch.complex64))
    weight.grad = torch.ones(2, dtype=torch.complex64)
    _refused(
        *(RuntimeError, "Expected gradients to be dense and real. Got a complex one: MaskedSGD"),
        MaskedSGD([weight]).step,
    )
    steps = [optimizer.state[p]["step"].item() for p in params if optimizer.state[p]]
    assert set(steps) == {1.0}


def test_every_parameter_may_have_a_mask_of_its_own_size() -> None:
    """Sizes around a byte and a word of the mask, all at once."""
    params = [nn.Parameter(torch.ones(n)) for n in itertools.chain(range(18), range(60, 70))]
    masks = {p: torch.arange(p.numel()) % 3 == 0 for p in params}
    optimizer = MaskedSGD(params, lr=1.0, masks=masks)
    for p in params:
        p.grad = torch.full_like(p, 0.5)
    optimizer.step()
    for p in params:
        assert torch.equal(p.detach(), 0.5 * masks[p])
