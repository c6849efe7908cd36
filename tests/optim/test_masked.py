"""MaskedSGD and MaskedAdamW: torch's steps on the kept weights, and nothing else anywhere."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sparsekern._extension import native
from sparsekern.optim import MaskedAdamW, MaskedSGD
from sparsekern.testing import assert_close_to_oracle
from tests.optim.masked_cases import (
    CONFIGS,
    STATEFUL,
    bits_of,
    give,
    gradients,
    kept_of,
    kept_vectors,
    weights,
)


@pytest.mark.parametrize("masked", ["zero", "unchanged"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", list(CONFIGS))
def test_equals_torch_for_20_steps(name: str, dtype: torch.dtype, masked: str) -> None:
    """The tolerance is the house rule: against torch in float64, twice torch's own error."""
    ours, theirs, options = CONFIGS[name]
    params, masks = weights(dtype)
    before = [p.detach().clone() for p in params]
    plain_dtype = torch.float32 if dtype == torch.float64 else dtype
    twins = [
        [nn.Parameter(v.detach().to(d).clone()) for v in kept_vectors(params, masks)]
        for d in (plain_dtype, torch.float64)
    ]
    optimizer = ours(params, masks=masks, masked=masked, **options)
    rivals = [theirs(twin, **options) for twin in twins]
    for grads in gradients(20):
        grads = [grad.to(dtype) for grad in grads]
        give(params, grads)
        for twin, rival in zip(twins, rivals, strict=True):
            for own, p, grad in zip(twin, params, grads, strict=True):
                own.grad = kept_of(grad, masks.get(p)).to(own.dtype)
            rival.step()
        optimizer.step()
        kept = torch.cat([kept_of(p.detach(), masks.get(p)).flatten() for p in params])
        plain, oracle = (torch.cat([v.detach().flatten() for v in twin]) for twin in twins)
        assert_close_to_oracle(kept, plain, oracle, "kept weights")
        for p, grad, first in zip(params, grads, before, strict=True):
            assert torch.equal(bits_of(p.grad), bits_of(grad))  # gradients are not written
            if p in masks:
                rest = p.detach()[~masks[p]]
                wanted = torch.zeros_like(rest) if masked == "zero" else first[~masks[p]]
                assert torch.equal(bits_of(rest), bits_of(wanted))


@pytest.mark.parametrize("name", list(STATEFUL))
def test_state_is_torchs_on_kept_weights_and_zero_elsewhere(name: str) -> None:
    ours, theirs, options = STATEFUL[name]
    params, masks = weights()
    twins = kept_vectors(params, masks)
    optimizer, rival = ours(params, masks=masks, **options), theirs(twins, **options)
    for grads in gradients(3):
        give(params, grads)
        for own, p, grad in zip(twins, params, grads, strict=True):
            own.grad = kept_of(grad, masks.get(p))
        optimizer.step(), rival.step()
    for p, own in zip(params, twins, strict=True):
        assert optimizer.state[p].keys() == rival.state[own].keys()
        for key, value in rival.state[own].items():
            mine = optimizer.state[p][key]
            if value.ndim == 0:
                assert torch.equal(mine, value)
            elif p in masks:
                torch.testing.assert_close(mine[masks[p]], value)
                assert not mine[~masks[p]].any()
            else:
                torch.testing.assert_close(mine, value)


@pytest.mark.skipif(not native.loaded, reason="plain torch's sums follow the threads")
@pytest.mark.parametrize("name", list(CONFIGS))
def test_any_number_of_threads_bitwise(name: str) -> None:
    ours, _, options = CONFIGS[name]
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        large = nn.Parameter(torch.randn(300, 401))
        many = [nn.Parameter(torch.randn(i, 7)) for i in range(100, 130)]
        masks = {p: torch.rand(p.shape) < 0.4 for p in (large, *many[::2])}
        optimizer = ours([large, *many], masks=masks, clip_norm=1.0, **options)
        for _ in range(3):
            for p in (large, *many):
                p.grad = torch.randn(p.shape)
            optimizer.step()
        results.append([*(bits_of(p) for p in (large, *many)), bits_of(optimizer.grad_norm)])
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


# Clipping


@pytest.mark.parametrize("clip_norm", [0.5, 1e6])
@pytest.mark.parametrize("name", ["momentum", "adamw"])
def test_clipping_is_torchs_over_kept_gradients(name: str, clip_norm: float) -> None:
    ours, theirs, options = CONFIGS[name]
    params, masks = weights()
    twins = kept_vectors(params, masks)
    groups = [{"params": params[:2]}, {"params": params[2:]}]  # one norm over all groups
    optimizer = ours(groups, masks=masks, clip_norm=clip_norm, **options)
    rival = theirs(twins, **options)
    assert optimizer.grad_norm is None
    for grads in gradients(4):
        give(params, grads)
        for own, p, grad in zip(twins, params, grads, strict=True):
            own.grad = kept_of(grad, masks.get(p)).clone()
        norm = nn.utils.clip_grad_norm_(twins, clip_norm)
        rival.step(), optimizer.step()
        torch.testing.assert_close(optimizer.grad_norm, norm)
        assert all(map(torch.equal, (p.grad for p in params), grads))
    for p, own in zip(params, twins, strict=True):
        torch.testing.assert_close(p[masks[p]] if p in masks else p, own)


def test_clipping_without_any_gradient() -> None:
    params, masks = weights()
    optimizer = MaskedSGD(params, masks=masks, clip_norm=1.0)
    optimizer.step()
    assert optimizer.grad_norm == 0


def test_masked_nan_is_not_part_of_the_norm() -> None:
    weight = nn.Parameter(torch.ones(3))
    optimizer = MaskedSGD(
        [weight], lr=1.0, masks={weight: torch.tensor([True, False, True])}, clip_norm=10.0
    )
    weight.grad = torch.tensor([3.0, float("nan"), 4.0])
    optimizer.step()
    assert optimizer.grad_norm.item() == 5
    assert weight.tolist() == [-2, 0, -3]


@pytest.mark.parametrize("odd", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["momentum", "adamw"])
def test_clipping_by_a_norm_that_is_not_finite(name: str, odd: float) -> None:
    """As torch: NaN spreads to all weights; an infinite norm clips everything else to zero."""
    ours, theirs, options = CONFIGS[name]
    params, masks = weights()
    twins = kept_vectors(params, masks)
    optimizer = ours(params, masks=masks, clip_norm=1.0, **options)
    rival = theirs(twins, **options)
    for grads in gradients(2):
        grads[0][masks[params[0]]] = torch.where(
            torch.arange(twins[0].numel()) == 1, odd, grads[0][masks[params[0]]]
        )
        give(params, grads)
        for own, p, grad in zip(twins, params, grads, strict=True):
            own.grad = kept_of(grad, masks.get(p)).clone()
        norm = nn.utils.clip_grad_norm_(twins, 1.0)
        rival.step(), optimizer.step()
        torch.testing.assert_close(optimizer.grad_norm, norm, equal_nan=True)
    for p, own in zip(params, twins, strict=True):
        kept = p[masks[p]] if p in masks else p
        torch.testing.assert_close(kept, own, equal_nan=True)


# Masks that change


@pytest.mark.parametrize("name", list(STATEFUL))
def test_grown_weights_start_without_state(name: str) -> None:
    """Kept weights go on as if nothing had happened, dropped ones lose their state at once."""
    ours, _, options = STATEFUL[name]
    params, masks = weights()
    p, old = params[0], masks[params[0]]
    optimizer = ours([p], masks={p: old}, **options)
    alone = nn.Parameter(p.detach().clone())
    other = ours([alone], masks={alone: old}, **options)
    new = old.flip(0)
    grads = [each[0] for each in gradients(6)]
    for step, grad in enumerate(grads[:5]):
        if step == 3:
            optimizer.set_masks({p: new})
        p.grad, alone.grad = grad.clone(), grad.clone()
        optimizer.step(), other.step()
    both = old & new
    assert torch.equal(bits_of(p[both]), bits_of(alone[both]))
    fresh = nn.Parameter(torch.zeros_like(p))
    last = ours([fresh], masks={fresh: new}, **options)
    if name == "momentum":  # whose first step would be another one
        last.state[fresh]["momentum_buffer"] = torch.zeros_like(p)
    for name_, value in optimizer.state[p].items():
        if value.ndim:
            assert not value[~new].any(), name_
            assert value[new & ~old].any(), name_
    if name == "momentum":
        for grad in grads[3:5]:
            fresh.grad = grad
            last.step()
        grown = new & ~old
        torch.testing.assert_close(p[grown], fresh[grown])
    # Dropped and grown again: the state of before is gone.
    optimizer.set_masks({p: old & ~new})
    p.grad = torch.zeros_like(p)
    optimizer.step()
    regrown = old & ~new
    for value in optimizer.state[p].values():
        assert value.ndim == 0 or not value[regrown].any()


def test_masks_can_be_taken_away_and_read() -> None:
    params, masks = weights()
    optimizer = MaskedSGD(params, lr=1.0, masks=masks)
    assert torch.equal(optimizer.mask(params[0]), masks[params[0]])
    assert optimizer.mask(params[3]) is None
    optimizer.set_masks({params[0]: None})
    assert optimizer.mask(params[0]) is None
    params[0].grad = torch.ones_like(params[0])
    before = params[0].detach().clone()
    optimizer.step()
    assert torch.equal(params[0], before - 1)


def test_weights_without_a_gradient_are_left_alone() -> None:
    params, masks = weights()
    before = [p.detach().clone() for p in params]
    optimizer = MaskedAdamW(params, masks=masks)
    params[1].grad = torch.ones_like(params[1])
    optimizer.step()
    assert all(
        torch.equal(p, b) == (i != 1) for i, (p, b) in enumerate(zip(params, before, strict=True))
    )
    assert set(optimizer.state) == {params[1]}
