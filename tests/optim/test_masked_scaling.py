"""Masked optimisers under loss scaling, in CUDA graphs, and with float32 masters."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import sparsekern as sk
from sparsekern.optim import MaskedAdamW, MaskedSGD, state_bytes
from sparsekern.prune import SET, Method, Pruner, RigL
from sparsekern.testing import assert_close_to_oracle
from tests.optim.masked_cases import (
    CONFIGS,
    STATEFUL,
    bits_of,
    give,
    gradients,
    kept_of,
    kept_vectors,
    network,
    weights,
)

LOW = (torch.bfloat16, torch.float16)
SCALE = 1024.0


class NoWaiting(TorchDispatchMode):
    """Fails where the host would have to wait for a device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func not in (
            torch.ops.aten._local_scalar_dense.default,
            torch.ops.aten.nonzero.default,
            torch.ops.aten.equal.default,
        ), func
        return func(*args, **(kwargs or {}))


# Capturable


@pytest.mark.parametrize("name", list(CONFIGS))
def test_capturable_gives_the_same_bits_and_waits_for_nothing(name: str) -> None:
    ours, _, options = CONFIGS[name]
    results = []
    for capturable in (False, True):
        params, masks = weights()
        optimizer = ours(params, masks=masks, clip_norm=2.0, capturable=capturable, **options)
        for step, grads in enumerate(gradients(4)):
            give(params, grads)
            if capturable and step > 0 and not isinstance(options.get("lr"), Tensor):
                with NoWaiting():
                    optimizer.step()
            else:
                optimizer.step()
        state = [v for each in optimizer.state.values() for v in each.values()]
        results.append([bits_of(value) for value in (*params, *state)])
    assert all(map(torch.equal, *results))


@pytest.mark.parametrize("name", ["momentum", "adamw"])
def test_a_step_under_a_scaler_waits_for_nothing(name: str) -> None:
    ours, _, options = CONFIGS[name]
    params, masks = weights(torch.float16)
    optimizer = ours(params, masks=masks, clip_norm=2.0, master_weights=True, **options)
    for grads in gradients(3):
        give(params, grads)
        optimizer.grad_scale, optimizer.found_inf = torch.tensor(2.0), torch.zeros(1)
        with NoWaiting():
            optimizer.step()


@pytest.mark.parametrize("name", ["momentum", "adamw"])
def test_a_rate_as_a_tensor_may_change_in_place(name: str) -> None:
    """As a captured graph sees it: filled between the steps, the same tensor."""
    ours, _, options = CONFIGS[name]
    results = []
    for capturable in (False, True):
        params, masks = weights()
        lr = torch.tensor(0.1) if capturable else 0.1
        optimizer = ours(params, masks=masks, capturable=capturable, **{**options, "lr": lr})
        for step, grads in enumerate(gradients(3)):
            give(params, grads)
            value = torch.tensor(0.1 / (step + 1))
            if isinstance(lr, Tensor):
                lr.fill_(value)
            else:
                optimizer.param_groups[0]["lr"] = value.item()
            optimizer.step()
        results.append([bits_of(p) for p in params])
    assert all(map(torch.equal, *results))


def test_a_rate_in_whole_numbers() -> None:
    weight = nn.Parameter(torch.zeros(3))
    weight.grad = torch.ones(3)
    MaskedSGD([weight], lr=torch.tensor(2), capturable=True).step()
    assert weight.tolist() == [-2, -2, -2]


def test_capturable_is_of_the_group_and_of_the_state() -> None:
    """As torch's: a state that was loaded brings it along."""
    params, _ = weights()
    first = MaskedAdamW([{"params": params[:1]}, {"params": params[1:], "capturable": False}])
    assert not any(group["capturable"] for group in first.param_groups)
    theirs = torch.optim.AdamW(params, capturable=True)
    ours = MaskedAdamW(params)
    ours.load_state_dict(theirs.state_dict())
    assert ours.param_groups[0]["capturable"]


def test_what_cannot_be_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = nn.Parameter(torch.ones(3))
    weight.grad = torch.ones(3)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    for ours in (MaskedSGD, MaskedAdamW):
        with pytest.raises(
            RuntimeError, match="^Expected capturable to be True while a CUDA graph"
        ):
            ours([weight]).step()
    optimizer = MaskedSGD([weight], momentum=0.9, dampening=0.5, capturable=True)
    with pytest.raises(RuntimeError, match="^Expected a first step with dampening before a CUDA"):
        optimizer.step()
    assert weight.tolist() == [1, 1, 1]


# Loss scaling


@pytest.mark.parametrize("unscale_first", [False, True])
@pytest.mark.parametrize("clip_norm", [None, 0.5])
@pytest.mark.parametrize("name", list(CONFIGS))
def test_a_scaler_is_torchs_over_kept_gradients(
    name: str, clip_norm: float | None, unscale_first: bool
) -> None:
    """Two of six steps overflow, the first one among them; gradients are not written."""
    ours, theirs, options = CONFIGS[name]
    params, masks = weights()
    twins = kept_vectors(params, masks)
    optimizer = ours(params, masks=masks, clip_norm=clip_norm, **options)
    rival = theirs(twins, **options)
    scaler = torch.amp.GradScaler("cpu", init_scale=SCALE, growth_interval=2)
    scaler.scale(torch.ones(()))
    for step, grads in enumerate(gradients(6)):
        scale = scaler.get_scale()
        overflow = step in (0, 3)
        scaled = [grad * scale for grad in grads]
        if overflow:
            scaled[0][masks[params[0]]] = float("inf")
        give(params, scaled)
        before = [p.detach().clone() for p in params]
        if unscale_first:
            scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        assert scaler.get_scale() == (
            scale / 2 if overflow else scale * (2 if step in (2, 5) else 1)
        )
        if overflow:
            assert all(map(torch.equal, before, params))
            continue
        for own, p, grad in zip(twins, params, grads, strict=True):
            own.grad = kept_of(grad, masks.get(p)).clone()
        if clip_norm is not None:
            norm = nn.utils.clip_grad_norm_(twins, clip_norm)
            torch.testing.assert_close(optimizer.grad_norm, norm)
        rival.step()
        if not unscale_first:
            assert all(map(torch.equal, (p.grad for p in params), scaled))
        for p, own in zip(params, twins, strict=True):
            torch.testing.assert_close(kept_of(p.detach(), masks.get(p)), own.detach())
    for p, own in zip(params, twins, strict=True):
        if "step" in rival.state[own]:
            assert optimizer.state[p]["step"] == rival.state[own]["step"] == 4


def test_the_flag_may_count_devices() -> None:
    """GradScaler adds up the flags of all devices."""
    weight = nn.Parameter(torch.ones(3))
    optimizer = MaskedAdamW([weight])
    weight.grad = torch.ones(3)
    optimizer.found_inf = torch.tensor([2.0])
    optimizer.step()
    assert weight.tolist() == [1, 1, 1]
    assert optimizer.state[weight]["step"] == 0


# Float32 masters of 16-bit weights


@pytest.mark.parametrize("masked", ["zero", "unchanged"])
@pytest.mark.parametrize("dtype", LOW, ids=str)
@pytest.mark.parametrize("name", list(CONFIGS))
def test_masters_take_the_steps_of_float32(name: str, dtype: torch.dtype, masked: str) -> None:
    """As float32 weights with the same gradients, and the parameter is the rounded master."""
    ours, _, options = CONFIGS[name]
    params, masks = weights(dtype)
    wide, wide_masks = weights(dtype)
    wide = [nn.Parameter(p.detach().float()) for p in wide]
    wide_masks = dict(zip(wide, masks.values(), strict=False))
    optimizer = ours(params, masks=masks, masked=masked, master_weights=True, **options)
    rival = ours(wide, masks=wide_masks, masked=masked, **options)
    for grads in gradients(5):
        grads = [grad.to(dtype) for grad in grads]
        give(params, grads)
        give(wide, grads)
        optimizer.step(), rival.step()
        for p, own in zip(params, wide, strict=True):
            master = optimizer.state[p]["master"]
            assert master.dtype == torch.float32
            assert torch.equal(bits_of(master), bits_of(own))
            assert torch.equal(bits_of(p), bits_of(own.to(dtype)))


def test_masters_move_where_16_bits_would_not() -> None:
    """A step of 2^-10 is nothing to a bfloat16 of 1; a hundred of them are not."""
    for master_weights in (False, True):
        weight = nn.Parameter(torch.ones(70, dtype=torch.bfloat16))
        optimizer = MaskedSGD([weight], lr=2.0**-10, master_weights=master_weights)
        for _ in range(128):
            weight.grad = torch.ones_like(weight)
            optimizer.step()
        assert (weight == (0.875 if master_weights else 1.0)).all()


@pytest.mark.parametrize("name", list(STATEFUL))
def test_masters_under_a_scaler_with_float16_gradients(name: str) -> None:
    """Which torch unscales for nobody but optimisers that do it themselves."""
    ours, theirs, options = STATEFUL[name]
    params, masks = weights(torch.float16)
    twins = [
        [nn.Parameter(v.detach().to(d)) for v in kept_vectors(params, masks)]
        for d in (torch.float32, torch.float64)
    ]
    optimizer = ours(params, masks=masks, master_weights=True, **options)
    rivals = [theirs(twin, **options) for twin in twins]
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    scaler.scale(torch.ones(()))
    for grads in gradients(3):
        give(params, [grad * 64 for grad in grads])
        for twin, rival in zip(twins, rivals, strict=True):
            for own, p in zip(twin, params, strict=True):
                own.grad = kept_of(p.grad, masks.get(p)).to(own.dtype) / 64
            rival.step()
        scaler.step(optimizer)
        scaler.update()
    for p, plain, oracle in zip(params, *twins, strict=True):
        kept = kept_of(optimizer.state[p]["master"], masks.get(p))
        assert_close_to_oracle(kept, plain.detach(), oracle.detach(), "master")


@pytest.mark.parametrize("dtype", LOW, ids=str)
@pytest.mark.parametrize("name", list(STATEFUL))
def test_masters_are_resumed_bitwise(name: str, dtype: torch.dtype) -> None:
    ours, _, options = STATEFUL[name]
    whole, cut = weights(dtype), weights(dtype)
    options = {**options, "master_weights": True}
    optimizers = [ours(params, masks=masks, **options) for params, masks in (whole, cut)]
    for step, grads in enumerate(gradients(6)):
        if step == 3:
            file = io.BytesIO()
            torch.save(optimizers[1].state_dict(), file)
            file.seek(0)
            optimizers[1] = ours(cut[0], masks=cut[1], **{**options, "lr": 7.0})
            optimizers[1].load_state_dict(torch.load(file))
        for (params, _), optimizer in zip((whole, cut), optimizers, strict=True):
            give(params, grads)
            optimizer.step()
    for p, q in zip(whole[0], cut[0], strict=True):
        assert torch.equal(bits_of(p), bits_of(q))
        for key, value in optimizers[0].state[p].items():
            assert torch.equal(value, optimizers[1].state[q][key])
            assert value.dtype == torch.float32
    twin = copy.deepcopy(optimizers[0])
    assert twin.master_weights
    assert state_bytes(twin) == state_bytes(optimizers[0])


def test_masters_follow_what_is_written_into_weights() -> None:
    """A weight that somebody sets is set; its neighbours keep what 16 bits cannot hold."""
    weight = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    optimizer = MaskedSGD([weight], lr=2.0**-10, master_weights=True)
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    with torch.no_grad():
        weight[1] = 5.0
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    assert optimizer.state[weight]["master"].tolist() == [1 - 2.0**-9, 5 - 2.0**-10, 1 - 2.0**-9]


def test_only_16_bits_have_masters() -> None:
    weight, low = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3).half())
    optimizer = MaskedAdamW([weight, low], lr=0.25, weight_decay=0, master_weights=True)
    weight.grad, low.grad = torch.ones(3), torch.ones(3).half()
    optimizer.step()
    assert "master" not in optimizer.state[weight]
    assert torch.equal(weight, optimizer.state[low]["master"])
    assert (low == 0.75).all()


def test_masters_of_weights_in_another_memory_format() -> None:
    results = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(0)
        first = torch.randn(6, 5, 3, 3).half()
        weight = nn.Parameter(first.clone(memory_format=memory_format))
        optimizer = MaskedAdamW([weight], lr=0.1, master_weights=True)
        for _ in range(3):
            weight.grad = torch.randn(first.shape).half().to(memory_format=memory_format)
            optimizer.step()
        assert weight.is_contiguous(memory_format=memory_format)
        results.append(weight.detach().contiguous())
    assert torch.equal(*results)


@pytest.mark.parametrize("masked", ["zero", "unchanged"])
def test_masters_of_a_sparse_model(masked: str) -> None:
    """Masks of the model's layers, new ones included: what is masked is zero in both."""
    model = network().to(torch.bfloat16)
    sk.sparsify(model, 0.4, format="masked")
    options = {"model": model, "master_weights": True, "masked": masked}
    optimizer = MaskedAdamW(model.parameters(), lr=0.1, **options)
    weight = model[0].format.weight
    for _ in range(2):
        for _ in range(2):
            optimizer.zero_grad()
            model(torch.ones(2, 24, dtype=torch.bfloat16)).square().mean().backward()
            optimizer.step()
        mask = model[0].mask()
        master = optimizer.state[weight]["master"]
        assert not weight[~mask].any()
        assert not master[~mask].any()
        assert torch.equal(master.bfloat16(), weight)
        model[0].set_mask(mask.flip(0))
        model[0].set_mask(mask)  # what was dropped and grown again starts at zero
        assert not weight[mask & ~mask.flip(0)].any()


def test_masters_of_another_optimiser_are_dropped() -> None:
    """A state with masters, loaded where none are wanted, does not bring old weights back."""
    saved = []
    for master_weights in (True, False):
        weight = nn.Parameter(torch.ones(8, dtype=torch.bfloat16))
        optimizer = MaskedAdamW([weight], lr=0.25, master_weights=master_weights)
        if saved:
            optimizer.load_state_dict(saved[0])
            with torch.no_grad():
                weight.fill_(5)
        weight.grad = torch.ones_like(weight)
        optimizer.step()
        saved.append(optimizer.state_dict())
    assert "master" not in optimizer.state[weight]
    assert torch.all(weight > 4)


@pytest.mark.parametrize("method", [SET, RigL])
def test_a_pruner_with_float16_weights(method: type[Method]) -> None:
    """GradScaler refuses to unscale float16 gradients; ours does so in its own pass."""
    model = network().half()
    sk.sparsify(model, 0.4, format="masked")
    optimizer = MaskedAdamW(model.parameters(), model=model, master_weights=True)
    pruner = Pruner(model, optimizer, method(density=0.4, update_every=2), total_steps=20)
    scaler = torch.amp.GradScaler("cpu", init_scale=SCALE)
    masks = [layer.mask() for layer in pruner.layers]
    for step in range(4):
        optimizer.zero_grad()
        loss = model(torch.ones(2, 24, dtype=torch.float16)).float().square().mean()
        scaler.scale(loss * (float("inf") if step == 2 else 1.0)).backward()
        pruner.step(scaler=scaler)
        scaler.update()
        same = all(
            torch.equal(m, each.mask()) for m, each in zip(masks, pruner.layers, strict=True)
        )
        assert same == (step < 3)  # the update of step 2 waits for finite gradients
        assert all(torch.isfinite(p).all() for p in model.parameters())


def test_a_pruner_waits_only_for_its_updates() -> None:
    """Between changes of the topology, nobody asks whether the gradients have overflowed."""
    model = network()
    sk.sparsify(model, 0.4, format="masked")
    optimizer = MaskedAdamW(model.parameters(), model=model, clip_norm=1.0)
    pruner = Pruner(model, optimizer, SET(density=0.4, update_every=3), total_steps=20)
    scaler = torch.amp.GradScaler("cpu", init_scale=SCALE)
    for step in range(6):
        optimizer.zero_grad()
        scaler.scale(model(torch.ones(2, 24)).square().mean()).backward()
        if step in (1, 4, 5):
            with NoWaiting():
                pruner.step(scaler=scaler)
        else:
            pruner.step(scaler=scaler)
        scaler.update()
