"""Learning-rate schedules."""

from __future__ import annotations

import pytest

from sparsekern.train.learning_rate import SCHEDULES, Constant, Cosine, Linear, Schedule, Step


def _factors(schedule: Schedule, steps: int = 8, steps_per_epoch: int = 2) -> list[float]:
    return [schedule.factor(step, steps, steps_per_epoch) for step in range(steps)]


def test_warm_up_by_hand():
    expected = [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0]
    assert _factors(Constant(warmup_epochs=2)) == expected
    assert _factors(Constant(warmup_fraction=0.5)) == expected


def test_linear_by_hand():
    expected = [1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125]
    assert _factors(Linear()) == expected
    assert _factors(Linear(final_factor=0.5)) == [0.5 + each / 2 for each in expected]
    assert _factors(Linear(warmup_epochs=2))[3:] == [1.0, 1.0, 0.75, 0.5, 0.25]


def test_cosine_by_hand():
    factors = _factors(Cosine())
    assert factors[0] == 1.0
    assert factors[4] == pytest.approx(0.5)
    assert factors[7] == pytest.approx(0.0380602)
    assert _factors(Cosine(final_factor=0.2))[4] == pytest.approx(0.6)


def test_step_by_hand():
    factors = _factors(Step(milestones=(0.25, 0.75), gamma=0.5))
    assert factors == [1.0, 1.0, 0.5, 0.5, 0.5, 0.5, 0.25, 0.25]


def test_warm_up_as_long_as_the_run():
    for name in SCHEDULES:
        factors = _factors(SCHEDULES[name](warmup_fraction=1.0))
        assert factors == [(step + 1) / 8 for step in range(8)]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"warmup_epochs": -1}, "Expected warmup_epochs to be at least 0. Got -1."),
        ({"warmup_fraction": 2.0}, "Expected warmup_fraction to be in [0, 1]. Got 2.0."),
        ({"milestones": (0.5, 0.25)}, "Expected milestones to rise. Got [0.5, 0.25]."),
        ({"milestones": (1.5,)}, "Expected milestones to be in [0, 1]. Got 1.5."),
        ({"gamma": -0.1}, "Expected gamma to be in [0, 1]. Got -0.1."),
    ],
)
def test_errors(options: dict[str, object], sentence: str):
    with pytest.raises(ValueError) as error:
        Step(**options)  # type: ignore[arg-type]
    assert str(error.value) == sentence
