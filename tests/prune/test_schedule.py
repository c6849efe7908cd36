"""Schedules and distributions: formulas and cases worked by hand."""

from __future__ import annotations

import math

import pytest

from sparsekern.prune.distribution import DISTRIBUTIONS, kept_counts
from sparsekern.prune.schedule import Periodic, cosine_drop_fraction, cubic_ramp


def test_periodic_by_hand() -> None:
    schedule = Periodic(every=10, end=0.5)
    assert [t for t in range(100) if schedule.happens(t, 100)] == [10, 20, 30, 40]
    late = Periodic(every=10, begin=25)
    assert [t for t in range(60) if late.happens(t, 60)] == [25, 35, 45, 55]


def test_cosine_by_hand() -> None:
    assert cosine_drop_fraction(0, 100, 0.3) == pytest.approx(0.3)
    assert cosine_drop_fraction(50, 100, 0.3) == pytest.approx(0.15)
    assert cosine_drop_fraction(25, 100, 0.4) == pytest.approx(0.2 * (1 + math.sqrt(0.5)))
    assert cosine_drop_fraction(100, 100, 0.3) == 0
    assert cosine_drop_fraction(150, 100, 0.3) == 0


def test_cubic_by_hand() -> None:
    assert cubic_ramp(0.0, 0.0, 0.9) == pytest.approx(0)
    assert cubic_ramp(0.5, 0.0, 0.8) == pytest.approx(0.8 * (1 - 0.125))
    assert cubic_ramp(1.0, 0.0, 0.9) == cubic_ramp(2.0, 0.0, 0.9) == pytest.approx(0.9)
    assert cubic_ramp(-1.0, 0.2, 0.9) == pytest.approx(0.2)


def test_uniform() -> None:
    assert DISTRIBUTIONS["uniform"]([(3, 4), (5, 6)], 0.3) == [0.3, 0.3]


def test_er_by_hand() -> None:
    """Two layers, 10x10 and 10x30: weights .2 and .1333; 0.1 of 400 = eps (20 + 40)."""
    first, second = DISTRIBUTIONS["er"]([(10, 10), (10, 30)], 0.1)
    epsilon = 40 / 60
    assert first == pytest.approx(epsilon * 0.2)
    assert second == pytest.approx(epsilon * 40 / 300)


def test_erk_counts_all_sizes_of_a_convolution() -> None:
    shapes = [(8, 4, 3, 3), (10, 8)]
    er, erk = DISTRIBUTIONS["er"](shapes, 0.3), DISTRIBUTIONS["erk"](shapes, 0.3)
    assert erk[0] / erk[1] == pytest.approx((18 / 288) / (18 / 80))
    assert er[0] / er[1] == pytest.approx((12 / 32) / (18 / 80))


def test_erk_with_a_layer_that_becomes_dense() -> None:
    """The small layer would pass 1, so it is dense and the rest shares what is left."""
    shapes = [(1000, 1000), (10, 10)]
    large, small = DISTRIBUTIONS["erk"](shapes, 0.05)
    assert small == 1.0
    assert large * 1_000_000 + 100 == pytest.approx(0.05 * 1_000_100)


@pytest.mark.parametrize("distribution", list(DISTRIBUTIONS))
@pytest.mark.parametrize("density", [0.0, 0.001, 0.05, 0.3, 0.77, 1.0])
def test_counts_meet_the_total(distribution: str, density: float) -> None:
    shapes = [(512, 64), (512, 512), (10, 512), (7, 3)]
    counts = kept_counts(shapes, density, distribution)
    sizes = [a * b for a, b in shapes]
    assert all(0 <= c <= n for c, n in zip(counts, sizes, strict=True))
    assert sum(counts) == round(density * sum(sizes))
    if density > 0.001:
        assert min(counts) >= 1


def test_no_layer_becomes_empty() -> None:
    """The budget is taken from the largest layer."""
    counts = kept_counts([(1000, 1000), (3, 3)], 0.0001, "uniform")
    assert counts == [99, 1]


@pytest.mark.parametrize("distribution", list(DISTRIBUTIONS))
@pytest.mark.parametrize("density", [1e-12, 1e-6, 1e-5])
def test_one_weight_a_layer_is_the_least(distribution: str, density: float) -> None:
    """Also where that is more than the density asks for."""
    shapes = [(512, 64), (512, 512), (10, 512), (7, 3), (1, 1)]
    counts = kept_counts(shapes, density, distribution)
    assert min(counts) == 1
    assert sum(counts) == max(5, round(density * sum(a * b for a, b in shapes)))


@pytest.mark.parametrize("distribution", list(DISTRIBUTIONS))
def test_layers_without_weights(distribution: str) -> None:
    assert kept_counts([(0, 5), (4, 5), (3, 0, 3, 3)], 0.5, distribution) == [0, 10, 0]
    assert kept_counts([(0, 5)], 0.5, distribution) == [0]


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match=r"Expected density to be in \[0, 1\]. Got -0.1"):
        kept_counts([(3, 3)], -0.1)
    with pytest.raises(ValueError, match="Expected distribution to be one of er, erk, uniform"):
        kept_counts([(3, 3)], 0.5, "global")
    with pytest.raises(ValueError, match="Expected update_every to be above 0"):
        Periodic(0)
    with pytest.raises(ValueError, match=r"Expected end to be in \[0, 1\]"):
        Periodic(1, end=2.0)
    with pytest.raises(ValueError, match="Expected begin to be at least 0"):
        Periodic(1, begin=-1)
