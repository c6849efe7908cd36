"""Masked optimisers in training loops: checkpoints, copies, schedulers, scalers, autograd."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparsekern as sk
from sparsekern.optim import MaskedAdamW, MaskedSGD
from sparsekern.prune import Pruner, Static
from tests.optim.masked_cases import (
    CONFIGS,
    MASKED,
    STATEFUL,
    bits_of,
    give,
    gradients,
    network,
    weights,
)

# Checkpoints and copies


@pytest.mark.parametrize("name", list(STATEFUL))
@pytest.mark.parametrize("first", ["ours", "torch"])
def test_state_dicts_are_interchangeable(name: str, first: str) -> None:
    """Ten steps in one, five in the other: as fifteen of torch's."""
    ours, theirs, options = STATEFUL[name]
    params, masks = weights()
    whole = [nn.Parameter(p.detach() * masks.get(p, 1)) for p in params]
    parts = [nn.Parameter(p.detach().clone()) for p in whole]
    own_masks = dict(zip(parts, masks.values(), strict=False))
    makers = {
        "ours": lambda: ours(parts, masks=own_masks, lr=9.0),
        "torch": lambda: theirs(parts, lr=9.0),
    }
    reference = theirs(whole, **options)
    optimizer = makers[first]()
    for group in optimizer.param_groups:
        group.update(options)
    for step, grads in enumerate(gradients(15)):
        if step == 10:
            state = optimizer.state_dict()
            optimizer = makers["torch" if first == "ours" else "ours"]()
            optimizer.load_state_dict(state)
        for p, q, grad in zip(whole, parts, grads, strict=True):
            p.grad = grad * own_masks.get(q, 1)
            q.grad = p.grad.clone()
        # torch's decay and momentum of a zero weight without a gradient leave it at zero.
        reference.step(), optimizer.step()
    for p, q in zip(whole, parts, strict=True):
        torch.testing.assert_close(p, q)
    assert optimizer.param_groups[0]["lr"] == options["lr"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", list(STATEFUL))
def test_resumes_bitwise(name: str, dtype: torch.dtype) -> None:
    ours, _, options = STATEFUL[name]
    whole, cut = weights(dtype), weights(dtype)
    optimizers = [ours(params, masks=masks, **options) for params, masks in (whole, cut)]
    for step, grads in enumerate(gradients(8)):
        if step == 4:
            file = io.BytesIO()
            torch.save(optimizers[1].state_dict(), file)
            file.seek(0)
            optimizers[1] = ours(cut[0], masks=cut[1], lr=7.0)
            optimizers[1].load_state_dict(torch.load(file))
        for (params, _), optimizer in zip((whole, cut), optimizers, strict=True):
            give(params, grads)
            optimizer.step()
    for p, q in zip(whole[0], cut[0], strict=True):
        assert torch.equal(bits_of(p), bits_of(q))
        for key, value in optimizers[0].state[p].items():
            assert torch.equal(value, optimizers[1].state[q][key])
            assert value.dtype == torch.float32


def test_options_that_a_state_lacks_are_the_defaults() -> None:
    """States of older versions of torch have fewer."""
    weight = nn.Parameter(torch.ones(4))
    state = torch.optim.AdamW([weight], lr=0.5).state_dict()
    del state["param_groups"][0]["decoupled_weight_decay"], state["param_groups"][0]["maximize"]
    optimizer = MaskedAdamW([weight], maximize=True)
    optimizer.load_state_dict(state)
    weight.grad = torch.ones(4)
    optimizer.step()
    assert optimizer.param_groups[0]["lr"] == 0.5
    assert (weight > 1.4).all()


def test_a_state_that_was_loaded_is_the_one_that_was_saved() -> None:
    weight = nn.Parameter(torch.ones(4))
    first, second = MaskedAdamW([weight], lr=0.5), MaskedAdamW([weight])
    second.load_state_dict(first.state_dict())
    second.load_state_dict(second.state_dict())
    assert second.state_dict() == copy.deepcopy(second).state_dict() == first.state_dict()


def test_state_of_masked_weights_is_cleared_after_loading() -> None:
    """torch's state may hold a momentum for weights that are masked here."""
    weight, grad = nn.Parameter(torch.ones(8)), torch.ones(8)
    theirs = torch.optim.SGD([weight], lr=0.1, momentum=0.9)
    weight.grad = grad.clone()
    theirs.step()
    mask = torch.arange(8) % 2 == 0
    ours = MaskedSGD([weight], lr=0.1, masks={weight: mask})
    ours.load_state_dict(theirs.state_dict())
    ours.step()
    buffer = ours.state[weight]["momentum_buffer"]
    torch.testing.assert_close(buffer, mask * 1.9)


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
@pytest.mark.parametrize("name", list(STATEFUL))
def test_copies_go_on_by_themselves(name: str, how: str) -> None:
    ours, _, options = STATEFUL[name]
    params, masks = weights()
    optimizer = ours(params, masks=masks, masked="unchanged", clip_norm=3.0, **options)
    for grads in gradients(2):
        give(params, grads)
        optimizer.step()
    twin = copy.deepcopy(optimizer) if how == "deepcopy" else pickle.loads(pickle.dumps(optimizer))
    copies = twin.param_groups[0]["params"]
    assert (twin.masked, twin.clip_norm) == ("unchanged", 3.0)
    assert all(
        torch.equal(twin.mask(q), masks[p])
        for p, q in zip(params[:MASKED], copies[:MASKED], strict=True)
    )
    for grads in gradients(2, start=2):
        give(params, grads), give(copies, grads)
        optimizer.step(), twin.step()
    assert all(torch.equal(bits_of(p), bits_of(q)) for p, q in zip(params, copies, strict=True))
    assert not {id(p) for p in params} & {id(q) for q in copies}


def test_a_copy_of_model_and_optimizer_belongs_together() -> None:
    model = network()
    sk.sparsify(model, 0.4, format="masked")
    optimizer = MaskedSGD(model.parameters(), lr=0.1, model=model)
    twin, other = copy.deepcopy((model, optimizer))
    twin[0].set_mask(~twin[0].mask())
    assert torch.equal(other.mask(twin[0].format.weight), twin[0].mask())
    assert not torch.equal(optimizer.mask(model[0].format.weight), twin[0].mask())


# What torch's training loops do with an optimiser


@pytest.mark.parametrize(
    "schedule",
    [
        lambda o: torch.optim.lr_scheduler.StepLR(o, 2, 0.5),
        lambda o: torch.optim.lr_scheduler.OneCycleLR(o, max_lr=0.1, total_steps=8),
        lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 8),
    ],
)
@pytest.mark.parametrize("name", ["momentum", "adamw_tensor_lr"])
def test_schedulers(name: str, schedule: Any) -> None:
    ours, theirs, options = CONFIGS[name]
    options = {k: v.clone() if isinstance(v, Tensor) else v for k, v in options.items()}
    params, _ = weights()
    twins = [nn.Parameter(p.detach().clone()) for p in params]
    other = {k: v.clone() if isinstance(v, Tensor) else v for k, v in options.items()}
    optimizers = [ours(params, **options), theirs(twins, **other)]
    schedules = [schedule(optimizer) for optimizer in optimizers]
    for grads in gradients(6):
        give(params, grads), give(twins, grads)
        for optimizer, each in zip(optimizers, schedules, strict=True):
            optimizer.step(), each.step()
    for p, q in zip(params, twins, strict=True):
        torch.testing.assert_close(p, q)


def test_closure_hooks_and_groups() -> None:
    params, masks = weights()
    optimizer = MaskedSGD([{"params": params[:1], "lr": 0.5}, {"params": params[1:2]}], lr=0.25)
    optimizer.set_masks({params[0]: masks[params[0]]})
    seen = []
    optimizer.register_step_post_hook(lambda *_: seen.append("post"))

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = params[0].sum() + params[1].sum()
        loss.backward()
        return loss

    before = [p.detach().clone() for p in params[:2]]
    assert optimizer.step(closure) == before[0].sum() + before[1].sum()
    kept = masks[params[0]]
    assert torch.equal(params[0][kept], before[0][kept] - 0.5)
    assert torch.equal(params[1], before[1] - 0.25)
    assert seen == ["post"]


@pytest.mark.parametrize("by_pruner", [False, True])
def test_under_a_gradient_scaler(by_pruner: bool) -> None:
    """Gradients are unscaled before the step; after an overflow nothing changes."""
    model = network()
    sk.sparsify(model, 0.4, format="masked")
    optimizer = MaskedAdamW(model.parameters(), lr=0.1, model=model, clip_norm=1e9)
    pruner = Pruner(model, optimizer, Static(density=0.4), total_steps=9) if by_pruner else None
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)

    def step() -> None:
        scaler.step(optimizer) if pruner is None else pruner.step(scaler=scaler)
        scaler.update()
        optimizer.zero_grad()

    weight = model[0].format.weight
    scaler.scale(model(torch.ones(2, 24)).square().mean()).backward()
    norm = torch.stack([p.grad.norm() for p in model.parameters()]).norm() / 1024
    before = weight.detach().clone()
    step()
    torch.testing.assert_close(optimizer.grad_norm, norm)
    assert not torch.equal(weight, before)
    after = weight.detach().clone()
    scaler.scale(model(torch.ones(2, 24)).square().mean()).backward()
    weight.grad[0, 0] = float("inf")
    step()
    assert torch.equal(weight, after)
    assert optimizer.state[weight]["step"] == 1


def test_weights_in_another_memory_format() -> None:
    """channels_last weights, gradients and states are updated where they are."""
    torch.manual_seed(0)
    first = torch.randn(6, 5, 3, 3)
    mask = torch.rand(first.shape) < 0.5
    results = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        weight = nn.Parameter(first.clone().to(memory_format=memory_format))
        optimizer = MaskedAdamW([weight], lr=0.1, masks={weight: mask})
        optimizer.load_state_dict(torch.optim.AdamW([weight], lr=0.1).state_dict())
        torch.manual_seed(1)
        for _ in range(3):
            weight.grad = torch.randn(first.shape).to(memory_format=memory_format)
            optimizer.step()
            moment = optimizer.state[weight]["exp_avg"]
            optimizer.state[weight]["exp_avg"] = moment.to(memory_format=memory_format)
            optimizer._cleared.clear()
        assert weight.is_contiguous(memory_format=memory_format)
        results.append(weight.detach().contiguous())
    assert torch.equal(*results)


def test_autograd_sees_the_step() -> None:
    """As with torch's optimisers, a graph that has saved the old weight is refused."""
    weight = nn.Parameter(torch.ones(3))
    optimizer = MaskedSGD([weight], lr=0.1)
    loss = weight.square().sum()
    weight.grad = torch.ones(3)
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
