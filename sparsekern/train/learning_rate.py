"""Learning-rate schedules: functions of the step alone, so that they have no state to save."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

from sparsekern._checks import check_fraction
from sparsekern._registry import Registry

SCHEDULES: Registry[type[Schedule]] = Registry("learning_rate")


@dataclass(frozen=True, kw_only=True)
class Schedule(ABC):
    """What the optimiser's ``lr`` is multiplied by at each step.

    For the first ``W`` steps the factor rises as ``(step + 1) / W``; then :meth:`decay` rules.

    Args:
        warmup_epochs: length of the warm-up in epochs, at least 0 (fractions are fine).
        warmup_fraction: or as a fraction of the run, in [0, 1]; at most one of the two is given.
    """

    warmup_epochs: float = 0.0
    warmup_fraction: float = 0.0

    def __post_init__(self) -> None:
        check_fraction(self.warmup_fraction, "warmup_fraction")
        if not self.warmup_epochs >= 0:
            raise ValueError(f"Expected warmup_epochs to be at least 0. Got {self.warmup_epochs}.")
        if self.warmup_epochs and self.warmup_fraction:
            raise ValueError(
                "Expected warmup_epochs or warmup_fraction, not both. "
                f"Got {self.warmup_epochs} and {self.warmup_fraction}."
            )

    def warmup_steps(self, total_steps: int, steps_per_epoch: int) -> int:
        """Steps of the warm-up; the run may end before it does."""
        return round(self.warmup_epochs * steps_per_epoch + self.warmup_fraction * total_steps)

    def factor(self, step: int, total_steps: int, steps_per_epoch: int) -> float:
        """The factor at this step, counted from 0."""
        warmup = self.warmup_steps(total_steps, steps_per_epoch)
        if step < warmup:
            return (step + 1) / warmup
        return self.decay((step - warmup) / max(total_steps - warmup, 1), step / total_steps)

    @abstractmethod
    def decay(self, after_warmup: float, of_run: float) -> float:
        """The factor, given how much has passed of the run after the warm-up and of the whole."""


@dataclass(frozen=True, kw_only=True)
class Constant(Schedule):
    """``1``.

    Args:
        warmup_epochs, warmup_fraction: see :class:`Schedule`.
    """

    def decay(self, after_warmup: float, of_run: float) -> float:
        return 1.0


@dataclass(frozen=True, kw_only=True)
class Cosine(Schedule):
    """``f + (1 - f) (1 + cos(pi p)) / 2``, where ``p`` is what has passed after the warm-up.

    Args:
        warmup_epochs, warmup_fraction: see :class:`Schedule`.
        final_factor: ``f``, the factor at the end, in [0, 1].

    Reference: Loshchilov and Hutter, SGDR, 2017, section 3 (without restarts).
    """

    final_factor: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fraction(self.final_factor, "final_factor")

    def decay(self, after_warmup: float, of_run: float) -> float:
        left = (1 + math.cos(math.pi * after_warmup)) / 2
        return self.final_factor + (1 - self.final_factor) * left


@dataclass(frozen=True, kw_only=True)
class Linear(Schedule):
    """``f + (1 - f) (1 - p)``, where ``p`` is what has passed after the warm-up.

    Args:
        warmup_epochs, warmup_fraction: see :class:`Schedule`.
        final_factor: ``f``, the factor at the end, in [0, 1].
    """

    final_factor: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fraction(self.final_factor, "final_factor")

    def decay(self, after_warmup: float, of_run: float) -> float:
        return self.final_factor + (1 - self.final_factor) * (1 - after_warmup)


@dataclass(frozen=True, kw_only=True)
class Step(Schedule):
    """``gamma`` to the power of the number of milestones that have passed.

    Args:
        warmup_epochs, warmup_fraction: see :class:`Schedule`.
        milestones: fractions of the whole run, in [0, 1], rising.
        gamma: factor of each milestone, in [0, 1].
    """

    milestones: tuple[float, ...] = (0.5, 0.75)
    gamma: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fraction(self.gamma, "gamma")
        for milestone in self.milestones:
            check_fraction(milestone, "milestones")
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError(f"Expected milestones to rise. Got {list(self.milestones)}.")

    def decay(self, after_warmup: float, of_run: float) -> float:
        return self.gamma ** sum(milestone <= of_run for milestone in self.milestones)


for _name, _schedule in (
    ("constant", Constant),
    ("cosine", Cosine),
    ("linear", Linear),
    ("step", Step),
):
    SCHEDULES.add(_name, _schedule)
