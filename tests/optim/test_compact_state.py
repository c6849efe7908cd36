"""MaskedAdamW with the state of kept weights alone: the steps of dense state, in less memory."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparsekern.optim import MaskedAdamW, state_bytes
from sparsekern.prune import Pruner
from tests.optim.masked_cases import MASKED, backward, bits_of, give, gradients, network, weights
from tests.optim.test_masked_pruner import METHODS
from tests.optim.test_masked_scaling import NoWaiting

OPTIONS: dict[str, Any] = {"lr": 0.03, "betas": (0.8, 0.95), "weight_decay": 0.3, "clip_norm": 3.0}


def pair(dtype: torch.dtype = torch.float32, **more: Any) -> list[tuple[list[nn.Parameter], Any]]:
    """The same weights under dense and under compact state."""
    made = []
    for compact_state in (False, True):
        params, masks = weights(dtype)
        optimizer = MaskedAdamW(
            params, masks=masks, compact_state=compact_state, **{**OPTIONS, **more}
        )
        made.append((params, optimizer))
    return made


def run(made: list[tuple[list[nn.Parameter], Any]], steps: int, start: int = 0) -> None:
    for grads in gradients(steps, start):
        for params, optimizer in made:
            give(params, grads)
            optimizer.step()


def same(made: list[tuple[list[nn.Parameter], Any]]) -> None:
    for p, q in zip(made[0][0], made[1][0], strict=True):
        torch.testing.assert_close(p, q)


@pytest.mark.parametrize("masked", ["zero", "unchanged"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_steps_are_those_of_dense_state(dtype: torch.dtype, masked: str) -> None:
    made = pair(dtype, masked=masked)
    run(made, 10)
    same(made)
    (params, dense), (others, compact) = made
    for i, (p, q) in enumerate(zip(params, others, strict=True)):
        mask = dense.mask(p)
        for name in ("exp_avg", "exp_avg_sq"):
            wide, few = dense.state[p][name], compact.state[q][name]
            assert few.dtype == dtype
            torch.testing.assert_close(few, wide[mask] if i < MASKED else wide)
    large = state_bytes(dense, params[0])
    assert state_bytes(compact, others[0]) == pytest.approx(0.3 * large, rel=0.15)


def test_states_follow_a_new_mask() -> None:
    """Kept weights go on, grown ones start at zero, dropped ones forget."""
    made = pair()
    for round_ in range(3):
        run(made, 3, 3 * round_)
        same(made)
        for params, optimizer in made:
            new = {p: optimizer.mask(p).flip(0) for p in params[:2]}
            optimizer.set_masks(new)
    for params, optimizer in made:
        optimizer.set_masks({params[0]: None, params[3]: params[3] > 0.5})
    run(made, 3, 9)
    same(made)
    (_, _), (params, compact) = made
    assert compact.state[params[0]]["exp_avg"].shape == params[0].shape
    assert compact.state[params[3]]["exp_avg"].shape == (compact.mask(params[3]).sum(),)


def test_only_a_new_mask_waits_for_the_device() -> None:
    params, masks = weights()
    optimizer = MaskedAdamW(params, masks=masks, compact_state=True, capturable=True)
    run([(params, optimizer)], 1)
    for grads in gradients(2):
        give(params, grads)
        with NoWaiting():
            optimizer.step()


@pytest.mark.parametrize("to", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_saved_state_goes_on(dtype: torch.dtype, to: bool) -> None:
    """Bit for bit in compact state, and as well in dense state."""
    more = {"master_weights": dtype != torch.float32}
    made = pair(dtype, **more)
    run(made, 4)
    (_, _), (params, compact) = made
    file = io.BytesIO()
    torch.save(compact.state_dict(), file)
    file.seek(0)
    twins = [nn.Parameter(p.detach().clone()) for p in params]
    masks = {q: compact.mask(p) for p, q in zip(params[:MASKED], twins, strict=False)}
    again = MaskedAdamW(twins, masks=masks, compact_state=to, **{**OPTIONS, **more})
    again.load_state_dict(torch.load(file))
    run([(params, compact), (twins, again)], 4, 4)
    same([(params, compact), (twins, again)])
    if to:
        assert all(torch.equal(bits_of(p), bits_of(q)) for p, q in zip(params, twins, strict=True))
    shape = compact.state[params[0]]["exp_avg"].shape if to else params[0].shape
    assert again.state[twins[0]]["exp_avg"].shape == shape


def test_torchs_state_becomes_compact() -> None:
    params, masks = weights()
    params = params[:1]
    masks = {params[0]: masks[params[0]]}
    theirs = torch.optim.AdamW(params, lr=0.1)
    params[0].grad = torch.ones_like(params[0])
    theirs.step()
    ours = MaskedAdamW(params, lr=0.1, masks=masks, compact_state=True)
    ours.load_state_dict(theirs.state_dict())
    ours.step()
    state = ours.state[params[0]]
    assert state["exp_avg"].shape == (masks[params[0]].sum(),)
    torch.testing.assert_close(state["exp_avg"], torch.full_like(state["exp_avg"], 0.19))
    ours.expand_state(params[0])
    torch.testing.assert_close(state["exp_avg"], masks[params[0]] * 0.19)


def test_copies_go_on_by_themselves() -> None:
    (_, _), (params, compact) = pair()
    run([(params, compact)], 2)
    twin = copy.deepcopy(compact)
    others = twin.param_groups[0]["params"]
    run([(params, compact), (others, twin)], 2, 2)
    assert all(torch.equal(bits_of(p), bits_of(q)) for p, q in zip(params, others, strict=True))
    assert twin.state[others[0]]["exp_avg"].ndim == 1


def test_an_overflow_changes_nothing() -> None:
    (_, _), (params, compact) = pair(torch.float16, master_weights=True)
    run([(params, compact)], 1)

    def everything() -> list[Tensor]:
        states = [v for each in compact.state.values() for v in each.values()]
        return [bits_of(value).clone() for value in (*params, *states)]

    before = everything()
    compact.found_inf = torch.ones(1)
    run([(params, compact)], 1, 1)
    assert all(map(torch.equal, before, everything()))
    compact.found_inf = torch.zeros(1)
    run([(params, compact)], 1, 1)
    assert not all(map(torch.equal, before, everything()))


@pytest.mark.parametrize("method", list(METHODS))
def test_under_a_pruner(method: str) -> None:
    """Every method changes masks as under dense state, and compact values take the state along."""
    models = [network(), network()]
    optimizers = [
        MaskedAdamW(model.parameters(), lr=0.01, model=model, compact_state=compact)
        for model, compact in zip(models, (False, True), strict=True)
    ]
    pruners = [
        Pruner(model, optimizer, METHODS[method](), total_steps=20, format="masked")
        for model, optimizer in zip(models, optimizers, strict=True)
    ]
    for step in range(24):
        if step == 20:
            for pruner in pruners:
                pruner.compact()
        for model, optimizer, pruner in zip(models, optimizers, pruners, strict=True):
            backward(model, step)
            pruner.step() if step < 20 else optimizer.step()
            optimizer.zero_grad()
        for p, q in zip(models[0].parameters(), models[1].parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)
