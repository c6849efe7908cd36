"""Optimisers of a recipe."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import sparsekern as sk
from sparsekern.train.optimizers import SGD, AdamW, MaskedAdamW, MaskedSGD


def test_sgd():
    model = nn.Linear(3, 2)
    optimizer = SGD(lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01).build(model)
    assert isinstance(optimizer, torch.optim.SGD)
    weights, rest = optimizer.param_groups
    assert weights["params"] == [model.weight]
    assert rest["params"] == [model.bias]
    assert (weights["weight_decay"], rest["weight_decay"]) == (0.01, 0.0)
    assert (weights["lr"], weights["momentum"], weights["nesterov"]) == (0.1, 0.9, True)


def test_adamw():
    optimizer = AdamW(lr=0.1, betas=(0.8, 0.9), eps=1e-6).build(nn.Linear(3, 2))
    assert isinstance(optimizer, torch.optim.AdamW)
    group = optimizer.param_groups[0]
    assert (group["lr"], group["betas"], group["eps"]) == (0.1, (0.8, 0.9), 1e-6)


def test_masked():
    """The same options, the model's masks, and clipping."""
    model = nn.Linear(3, 2)
    sgd = MaskedSGD(lr=0.1, momentum=0.9, weight_decay=0.01, clip_norm=2.0).build(model)
    adamw = MaskedAdamW(lr=0.1, betas=(0.8, 0.9), eps=1e-6).build(model)
    assert (type(sgd), type(adamw)) == (sk.optim.MaskedSGD, sk.optim.MaskedAdamW)
    assert (sgd.clip_norm, adamw.clip_norm) == (2.0, None)
    assert [group["weight_decay"] for group in sgd.param_groups] == [0.01, 0.0]
    assert sgd.param_groups[0]["momentum"] == 0.9
    assert (adamw.param_groups[0]["betas"], adamw.param_groups[0]["eps"]) == ((0.8, 0.9), 1e-6)
    whole = nn.Sequential(model)
    adamw = MaskedAdamW(lr=0.1).build(whole)
    sk.sparsify(whole, 0.5, format="masked")
    assert torch.equal(adamw.mask(whole[0].format.weight), whole[0].mask())


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: SGD(lr=-1.0), "Expected lr to be above 0 and finite. Got -1.0."),
        (lambda: SGD(lr=float("inf")), "Expected lr to be above 0 and finite. Got inf."),
        (lambda: SGD(lr=1.0, weight_decay=-1), "Expected weight_decay to be at least 0. Got -1."),
        (lambda: AdamW(lr=1.0, betas=(0.9, 1.0)), "Expected betas to be in [0, 1). Got [0.9, 1.0]"),
        (lambda: MaskedSGD(lr=1.0, clip_norm=0.0), "Expected clip_norm to be above 0 and finite."),
        (lambda: MaskedAdamW(lr=1.0, clip_norm=-1), "Expected clip_norm to be above 0 and finite."),
        (lambda: AdamW(lr=1.0, eps=-1.0), "Expected eps to be at least 0. Got -1.0."),
    ],
)
def test_errors(make: object, sentence: str):
    with pytest.raises(ValueError) as error:
        make()  # type: ignore[operator]
    assert str(error.value).startswith(sentence)
