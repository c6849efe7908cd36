"""Each method on eight weights, worked by hand."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from sparsekern.formats import FORMATS
from sparsekern.prune import GMP, METHODS, SET, Clock, Layer, RigL, Static

WEIGHTS = torch.tensor([[0.5, -0.1, 0.0, 0.3], [-0.4, 0.0, 0.2, 0.0]])
ACTIVE = torch.tensor([[True, True, False, True], [True, False, True, True]])  # six, one is 0.0


def layer(mask: Tensor = ACTIVE, format: str = "csr", weights: Tensor = WEIGHTS) -> Layer:
    stored = FORMATS[format].from_dense(weights, mask)
    return Layer("layer", stored, stored.nnz, torch.Generator().manual_seed(0))


def test_registered_by_name() -> None:
    assert {METHODS[name].name for name in METHODS} == set(METHODS)
    with pytest.raises(ValueError, match="Expected method to be one of .* Did you mean 'rigl'"):
        METHODS["rigll"]


def test_static_never_updates() -> None:
    assert not any(Static().is_update(Clock(t, 100)) for t in range(100))


def test_rigl_by_hand() -> None:
    """Six weights, a third dropped at t = 0 of the cosine: the active 0.0 and -0.1 go; the two
    largest gradients outside of the four kept are an inactive one and the dropped -0.1."""
    method = RigL(drop_fraction=1 / 3, end=1.0)
    view = layer()
    view.dense_grad = torch.tensor([[9.0, -3, 1, 9], [9, 5, 9, 0]])
    assert method.counts(view, Clock(0, 100)) == (4, 2)
    mask = method.update(view, Clock(0, 100))
    assert mask.tolist() == [[True, True, False, True], [True, True, True, False]]
    view.format.set_mask(mask)
    weights = view.format.to_dense()
    assert weights[0, 1] == WEIGHTS[0, 1]  # dropped and grown again: keeps its value
    assert weights[1, 1] == 0  # newly grown
    assert RigL(drop_fraction=0.5, end=1.0).counts(view, Clock(50, 100)) == (5, 1)


def test_rigl_schedule() -> None:
    method = RigL(update_every=10, end=0.5)
    assert [t for t in range(100) if method.is_update(Clock(t, 100))] == [10, 20, 30, 40]
    assert not RigL.optimizer_steps_on_update


def test_rigl_never_picks_an_inactive_weight_over_an_active_zero() -> None:
    """All weights are zero: by value active and inactive ones are tied."""
    view = layer(weights=torch.zeros(2, 4))
    view.dense_grad = torch.zeros(2, 4)
    method = RigL(drop_fraction=0.5, end=1.0)
    keep, grow = method.counts(view, Clock(0, 100))
    mask = method.update(view, Clock(0, 100))
    assert (keep, grow, int(mask.sum())) == (3, 3, 6)
    assert mask.flatten().nonzero().flatten().tolist()[:3] == [0, 1, 2]


def test_set_by_hand() -> None:
    """Four of six go: two smallest positive (0.0, 0.2) and the two negative ones; of eight
    positions two are free, so no more than two can move."""
    view = layer()
    assert SET(drop_fraction=2 / 3).counts(view, Clock(10, 100)) == (4, 2)
    kept = SET().keep(view, 2)
    assert view.active_weights.tolist() == pytest.approx([0.5, -0.1, 0.3, -0.4, 0.2, 0.0])
    assert kept.tolist() == [True, False, True, False, False, False]
    assert SET().keep(view, 5).tolist() == [True] * 5 + [False]
    assert SET().keep(view, 4).tolist() == [True, False, True, True, True, False]


def test_set_with_one_sign_only() -> None:
    """Where one sign has too few weights, the other gives more."""
    negative = -torch.tensor([[0.5, 0.1, 0.0, 0.3]])
    view = layer(torch.tensor([[True, True, False, True]]), weights=negative)
    assert SET().keep(view, 1).tolist() == [True, False, False]
    view = layer(torch.tensor([[True, True, False, True]]), weights=-negative)
    assert SET().keep(view, 1).tolist() == [True, False, False]


def test_set_grows_only_inactive_positions() -> None:
    view = layer()
    method = SET(drop_fraction=1 / 3)
    mask = method.update(view, Clock(100, 1000))
    assert int(mask.sum()) == 6
    assert int((mask & ~ACTIVE).sum()) == 2
    view.format.set_mask(mask)
    assert (view.format.to_dense()[mask & ~ACTIVE] == 0).all()


def test_set_draws_where_the_layer_is() -> None:
    """On the CPU, so that every device sees the same numbers, and then sent to the layer."""
    stored = SimpleNamespace(shape=(2, 4), parameter=torch.empty(6, device="meta"))
    view = SimpleNamespace(format=stored, generator=torch.Generator().manual_seed(0))
    scores = SET().grow_scores(view)  # type: ignore[arg-type]
    assert scores.shape == (2, 4)
    assert scores.device.type == "meta"


def test_gmp_by_hand() -> None:
    """From 8 of 8 to 2 of 8 on the cubic ramp; the smallest magnitudes go first."""
    method = GMP(density=0.25, update_every=10, end=0.5)
    view = layer(
        torch.ones(2, 4, dtype=torch.bool),
        "masked",
        torch.tensor([[8.0, -7, 6, -5], [4, -3, 2, -1]]),
    )
    view.final_nnz = 2
    assert [t for t in range(100) if method.is_update(Clock(t, 100))] == [1, 11, 21, 31, 41, 49]
    assert method.counts(view, Clock(1, 100)) == (8, 0)
    progress = 10 / 48
    sparsity = 0.75 * (1 - (1 - progress) ** 3)
    assert method.counts(view, Clock(11, 100)) == (round(8 * (1 - sparsity)), 0)
    assert method.counts(view, Clock(49, 100)) == (2, 0)
    assert method.update(view, Clock(49, 100)).tolist() == [[True, True, False, False], [False] * 4]


def test_gmp_ends_on_the_final_density_for_any_interval() -> None:
    for every in (1, 7, 33, 1000):
        for total in (10, 99, 100):
            method = GMP(density=0.25, update_every=every)
            updates = [t for t in range(total) if method.is_update(Clock(t, total))]
            view = layer(torch.ones(2, 4, dtype=torch.bool), "masked")
            view.final_nnz = 2
            assert method.counts(view, Clock(updates[-1], total)) == (2, 0)


@pytest.mark.parametrize("every", [1, 7, 1000])
@pytest.mark.parametrize("total", [2, 3, 10, 100, 1000])
@pytest.mark.parametrize(
    ("begin", "end"), [(0.0, 1.0), (0.0, 0.001), (0.95, 1.0), (0.999, 1.0), (0.5, 0.501)]
)
def test_gmp_ends_inside_of_the_run(every: int, total: int, begin: float, end: float) -> None:
    method = GMP(density=0.25, update_every=every, begin=begin, end=end)
    updates = [t for t in range(total) if method.is_update(Clock(t, total))]
    view = layer(torch.ones(2, 4, dtype=torch.bool), "masked")
    view.final_nnz = 2
    assert method.counts(view, Clock(updates[-1], total)) == (2, 0)


@pytest.mark.parametrize(
    ("make", "kind", "sentence"),
    [
        (lambda: RigL(density=2.0), ValueError, r"Expected density to be in \[0, 1\]. Got 2.0"),
        (lambda: RigL(drop_fraction=-1.0), ValueError, "Expected drop_fraction to be in"),
        (lambda: RigL(update_every=0), ValueError, "Expected update_every to be above 0"),
        (lambda: RigL(end=1.5), ValueError, "Expected end to be in"),
        (lambda: RigL(distribution="erx"), ValueError, "Expected distribution to be one of"),
        (lambda: RigL(pattern="2:4"), NotImplementedError, "Expected pattern of rigl to be"),
        (lambda: SET(drop_fraction="x"), TypeError, "Expected drop_fraction to be a number"),
        (lambda: GMP(begin=0.8, end=0.5), ValueError, "Expected begin to be below end"),
        (lambda: GMP(density=0.5, initial_density=0.4), ValueError, "Expected initial_density"),
    ],
)
def test_bad_configurations(make: object, kind: type[Exception], sentence: str) -> None:
    with pytest.raises(kind, match=sentence):
        make()  # type: ignore[operator]
