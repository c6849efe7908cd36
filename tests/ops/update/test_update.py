"""The update ops: what the contract does not ask."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from sparsekern._extension import native
from sparsekern.ops import OPS, mask, update

ADAMW: dict[str, Any] = {"lr": 0.5, "betas": (0.5, 0.75), "eps": 0.0, "weight_decay": 0.5}
KEPT = torch.tensor([True, False, True])


def packed(kept: Tensor) -> list[Tensor]:
    return [mask.pack_bits(kept)]


def vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)


def test_adamw_by_hand() -> None:
    """First step: both corrections cancel, so a kept weight moves by lr against its gradient."""
    p, m, v = vector(1, 2, 3), torch.zeros(3), torch.zeros(3)
    grad = vector(4, 4, -8)
    update.masked_adamw_([p], [grad], [m], [v], [torch.ones(())], packed(KEPT), **ADAMW)
    assert p.tolist() == [0.75 - 0.5, 2, 2.25 + 0.5]
    assert m.tolist() == [2, 0, -4]
    assert v.tolist() == [4, 0, 16]
    assert grad.tolist() == [4, 4, -8]
    # Second: m = 1 + 0.5 g, v = 3 + 0.25 g^2 with g = 2; the corrections are 3/4 and 7/16.
    update.masked_adamw_(
        *([p], [vector(2, 2, 0)], [m], [v], [vector(2)], packed(KEPT)), **ADAMW, zero_masked=True
    )
    expected = 0.75 * 0.25 - 0.5 * (2 / 0.75) / math.sqrt(4 / (7 / 16))
    assert p[0].item() == pytest.approx(expected, rel=1e-6)
    assert p[1].item() == 0
    assert (m[0].item(), v[0].item()) == (2, 4)


def test_sgd_by_hand() -> None:
    p, b = vector(1, 2, 3), vector(9, 9, 9)
    options = {"lr": 0.5, "momentum": 0.5, "dampening": 0.75, "weight_decay": 1.0}
    update.masked_sgd_([p], [vector(1, 1, 1)], [b], [True], packed(KEPT), **options)
    assert b.tolist() == [2, 9, 4]
    assert p.tolist() == [0, 2, 1]
    update.masked_sgd_([p], [vector(2, 2, 3)], [b], [False], packed(KEPT), **options)
    assert b.tolist() == [1 + 0.25 * 2, 9, 2 + 0.25 * 4]
    assert p.tolist() == [0 - 0.75, 2, 1 - 1.5]
    update.masked_sgd_(
        *([p], [vector(4, 4, 2)], [b], [False], packed(KEPT), torch.tensor(0.5)),
        **{"lr": 1.0, "momentum": 2.0, "nesterov": True, "maximize": True, "zero_masked": True},
    )
    assert b.tolist() == [3 - 2, 9, 6 - 1]
    assert p.tolist() == [-0.75 - (-2 + 2 * 1), 0, -0.5 - (-1 + 2 * 5)]


def test_norm_by_hand() -> None:
    grads = [vector(3, 100, 4), vector(12)]
    assert update.masked_norm(grads, [*packed(KEPT), torch.empty(0, dtype=torch.uint8)]) == 13
    assert update.masked_norm([], []) == 0


def test_norm_of_mixed_dtypes_is_float64() -> None:
    grads = [torch.ones(3, dtype=torch.float64), torch.ones(6, dtype=torch.bfloat16)]
    none = [torch.empty(0, dtype=torch.uint8)] * 2
    norm = update.masked_norm(grads, none)
    assert norm.dtype == torch.float64
    assert norm.item() == 3
    assert update.masked_norm(grads[1:], none[1:]).dtype == torch.float32


def test_norm_adds_millions_of_small_squares() -> None:
    """Sums in float32 alone would stop growing at 2^24."""
    grads = [torch.ones(1 << 22), torch.full((3 << 22,), 2.0)]
    none = [torch.empty(0, dtype=torch.uint8)] * 2
    assert update.masked_norm(grads, none).item() == pytest.approx(math.sqrt(13 << 22), rel=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_times_and_factors_of_either_dtype(dtype: torch.dtype) -> None:
    results = []
    for scalars in (torch.float32, torch.float64):
        p, g = torch.linspace(-1, 1, 70, dtype=dtype), torch.linspace(2, 3, 70, dtype=dtype)
        m, v = torch.zeros_like(p), torch.zeros_like(p)
        steps, factor = torch.ones((), dtype=scalars), torch.full((1,), 0.25, dtype=scalars)
        update.masked_adamw_(
            [p], [g], [m], [v], [steps], [torch.empty(0, dtype=torch.uint8)], factor, **ADAMW
        )
        results.append(p)
    assert torch.equal(*results)


def test_masks_keep_their_bits() -> None:
    """Masked weights of every kind, signed zeros and NaN included, stay as they are."""
    odd = torch.tensor([float("nan"), -0.0, float("-inf"), 1e-42, 1.5] * 30)
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        p = odd.to(dtype)
        before = p.clone().view(torch.uint8)
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        state = [torch.full(p.shape, 3.0, dtype=wide) for _ in range(2)]
        none = packed(torch.zeros(p.shape, dtype=torch.bool))
        args = ([p], [torch.ones_like(p)], *([s] for s in state), [torch.ones(())], none)
        update.masked_adamw_(*args, **ADAMW)
        update.masked_sgd_([p], args[1], [state[0]], [False], none, lr=0.1, momentum=0.9)
        assert torch.equal(p.view(torch.uint8), before)
        assert all((s == 3).all() for s in state)
        update.masked_adamw_(*args, **ADAMW, zero_masked=True)
        assert not p.view(torch.uint8).any()  # +0, whatever was there


ODD = torch.tensor([1.0, 1 / 3, float("nan"), -0.0, float("inf"), 1e5, 1e-42, 70000.0] * 83)


@pytest.mark.parametrize("masked_of", [lambda i: i % 3 > 0, lambda i: i < 9999])
@pytest.mark.parametrize("zero_masked", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_copies_are_the_rounded_weights(
    dtype: torch.dtype, zero_masked: bool, masked_of: Any
) -> None:
    """Bit for bit, masked ones too, whatever the copy held before; gradients may be in 16 bits."""
    for numel in (1, 63, 64, 65, 513, 664):
        keep = ~masked_of(torch.arange(numel))
        for bits in (packed(keep), [torch.empty(0, dtype=torch.uint8)]):
            grad = torch.linspace(-2, 2, numel).to(dtype)
            results = []
            for gradient in (grad, grad.float()):
                p, q, b = ODD[:numel].clone(), ODD[:numel].clone(), torch.ones(numel)
                m, v = torch.zeros(numel), torch.ones(numel)
                copies = [torch.full((numel,), 9, dtype=dtype) for _ in range(2)]
                update.masked_adamw_(
                    *([p], [gradient], [m], [v], [torch.ones(())], bits),
                    **{**ADAMW, "copies": copies[:1], "zero_masked": zero_masked},
                )
                update.masked_sgd_(
                    *([q], [gradient], [b], [False], bits),
                    **{"lr": 0.1, "momentum": 0.9, "zero_masked": zero_masked},
                    copies=copies[1:],
                )
                for weight, copy in zip((p, q), copies, strict=True):
                    expected = weight.to(dtype)
                    assert torch.equal(copy.isnan(), expected.isnan())
                    there = ~expected.isnan()
                    assert torch.equal(
                        copy[there].view(torch.int16), expected[there].view(torch.int16)
                    )
                results.append((p, q, b, m, v))
            for low, high in zip(*results, strict=True):
                torch.testing.assert_close(low, high, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("flag", [1.0, 2.0, float("inf")])
def test_an_overflow_changes_nothing(flag: float) -> None:
    """Not even masked weights that would become zero; 0 means that there was none."""
    found, none = torch.tensor([flag]), torch.tensor([0.0])
    start = vector(1, 2, 3)
    for overflow in (found, none, None):
        p, q, m, v, b = start.clone(), start.clone(), *torch.full((3, 3), 2.0)
        copies = [torch.full((3,), 9.0).half() for _ in range(2)]
        options = {"zero_masked": True, "found_inf": overflow}
        grad = [vector(4, float("inf"), 5)]
        update.masked_adamw_(
            *([p], grad, [m], [v], [torch.zeros(())], packed(KEPT)),
            **{**ADAMW, **options, "copies": copies[:1]},
        )
        update.masked_sgd_(
            *([q], grad, [b], [False], packed(KEPT)),
            **{"lr": 0.5, "momentum": 0.5, **options, "copies": copies[1:]},
        )
        same = [torch.equal(start, p), torch.equal(start, q)]
        same += [bool((each == 2).all()) for each in (m, v, b)]
        same += [bool((each == 9).all()) for each in copies]
        assert all(same) if overflow is found else not any(same)


@pytest.mark.parametrize("scalars", [torch.float32, torch.float64])
def test_a_rate_on_the_device_is_the_rate(scalars: torch.dtype) -> None:
    """The same bits as the same number, also for the decay."""
    rate = torch.tensor(0.3, dtype=scalars)
    results = []
    for given in ({"lr": 99.0, "rate": rate}, {"lr": rate.item()}):
        p, q = torch.linspace(-1, 1, 70), torch.linspace(-1, 1, 70)
        grad, m, v = torch.linspace(2, 3, 70), torch.zeros(70), torch.zeros(70)
        none = [torch.empty(0, dtype=torch.uint8)]
        options = {"betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.5}
        update.masked_adamw_([p], [grad], [m], [v], [torch.ones(())], none, **options, **given)
        update.masked_sgd_([q], [grad], [], [], none, weight_decay=0.5, **given)
        results.append((p, q))
    for first, second in zip(*results, strict=True):
        assert torch.equal(first, second)


def test_the_norm_undoes_a_loss_scale_first() -> None:
    """2^70 squared is infinite in float32."""
    grads = [vector(3, 100, 4) * 2.0**70]
    assert update.masked_norm(grads, packed(KEPT)).isinf()
    assert update.masked_norm(grads, packed(KEPT), torch.tensor([2.0**-70])) == 5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("density", [0.0, 0.02, 0.5, 1.0])
def test_compact_states_take_the_steps_of_dense_ones(density: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    for numel in (1, 511, 512, 513, 2600):
        keep = torch.rand(numel) < density
        bits = packed(keep)
        p, grad = torch.randn(numel).to(dtype), torch.randn(numel).to(dtype)
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        m, v = torch.randn(numel, dtype=wide), torch.rand(numel, dtype=wide)
        q, few, squares = p.clone(), m[keep], v[keep]
        ranks = [update.ranks_of_bits(bits[0], numel)]
        options = {**ADAMW, "eps": 1e-8, "zero_masked": True}
        for step in (vector(1), vector(2)):
            args = ([grad], [m], [v], [step], bits)
            update.masked_adamw_([p], *args, torch.tensor(0.5), **options)
            args = ([grad], [few], [squares], [step], bits, ranks)
            update.compact_adamw_([q], *args, torch.tensor(0.5), **options)
        for dense, compact in ((p, q), (m[keep], few), (v[keep], squares)):
            torch.testing.assert_close(compact, dense)


def test_ranks_by_hand() -> None:
    keep = torch.zeros(1030, dtype=torch.bool)
    keep[[0, 3, 511, 512, 1029]] = True
    ranks = update.ranks_of_bits(*packed(keep), 1030)
    assert ranks.tolist() == [0, 3, 4]
    assert ranks.dtype == torch.int32
    assert update.ranks_of_bits(*packed(keep[:0]), 0).tolist() == []
    with pytest.raises(ValueError, match=r"Expected bits to have shape \(1,\)\. Got \(129,\)"):
        update.ranks_of_bits(*packed(keep), 8)
    with pytest.raises(TypeError, match="Expected bits to have dtype torch.uint8"):
        update.ranks_of_bits(keep, 8)


OPTIONS: dict[str, dict[str, Any]] = {
    "update_masked_adamw_": {
        **{"lr": 0.1, "beta1": 0.9, "beta2": 0.9, "eps": 0.0, "weight_decay": 0.0},
        **{"decoupled": True, "maximize": False, "zero_masked": False},
    },
    "update_masked_sgd_": {
        **{"lr": 0.1, "momentum": 0.9, "dampening": 0.0, "weight_decay": 0.0},
        **{"nesterov": False, "maximize": False, "zero_masked": False},
    },
    "update_masked_norm": {},
}


def plain_args(name: str) -> list[Any]:
    ones = [torch.ones(30) for _ in range(4)]
    bits = packed(ones[0] > 0)
    if name == "update_masked_norm":
        return [[ones[0]], bits, None]
    more = ([ones[0].half()], None, None, None)
    if name == "update_masked_sgd_":
        return [*([each] for each in ones[:3]), [True], bits, *more]
    return [*([each] for each in ones), [torch.ones(())], bits, *more]


@pytest.mark.skipif(not native.loaded, reason="no native library")
@pytest.mark.parametrize("name", list(OPTIONS))
def test_native_code_checks_for_itself(name: str) -> None:
    """Called around Python's checks it raises, and writes nothing."""
    op = OPS[name]
    op.overload(*plain_args(name), **OPTIONS[name])
    half = [torch.ones(2).half(), torch.ones(60).half()[::2]]
    wrong = [[], [torch.ones(2)], [torch.ones(30).long()], [torch.ones(60)[::2]], *zip(half)]
    for at, good in enumerate(plain_args(name)):
        if not isinstance(good, list) or not isinstance(good[0], Tensor):
            continue
        is_copies = good[0].dtype == torch.float16
        for value in wrong[is_copies:]:  # there may be no copies
            args = plain_args(name)
            args[at] = list(value)
            before = [each.clone() for each in args[0]]
            with pytest.raises(RuntimeError, match=r"Expected .* Got "):
                op.overload(*args, **OPTIONS[name])
            assert all(map(torch.equal, before, args[0]))


@pytest.mark.skipif(not native.loaded, reason="no native library")
def test_native_sgd_counts_starts() -> None:
    args = plain_args("update_masked_sgd_")
    args[3] = []
    with pytest.raises(RuntimeError, match=r"Expected starts to have 1 entries\. Got 0"):
        OPS["update_masked_sgd_"].overload(*args, **OPTIONS["update_masked_sgd_"])
