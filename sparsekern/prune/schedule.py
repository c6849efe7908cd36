"""When something happens, and how much of it has happened so far.

Time is in optimiser steps; fractions of a run are resolved against ``total_steps``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from sparsekern._checks import check_fraction, check_positive


@dataclass(frozen=True)
class Periodic:
    """Events at every multiple of ``every`` steps from ``begin`` on, before ``end`` of the run.

    Args:
        every: steps between two events.
        begin: first step at which an event may happen; step 0 never has one, so that the first
            optimiser step comes before the first event.
        end: fraction of the run after which no event happens.
    """

    every: int
    begin: int = 0
    end: float = 1.0

    def __post_init__(self) -> None:
        check_positive(self.every, "update_every")
        check_fraction(self.end, "end")
        if self.begin < 0:
            raise ValueError(f"Expected begin to be at least 0. Got {self.begin}.")

    def happens(self, step: int, total_steps: int) -> bool:
        """Whether there is an event at this step."""
        if step == 0 or step < self.begin or step >= self.end * total_steps:
            return False
        return (step - self.begin) % self.every == 0


def cosine_drop_fraction(step: int, end_step: float, alpha: float) -> float:
    """``alpha / 2 (1 + cos(pi step / end_step))``, 0 from ``end_step`` on.

    Reference: Evci et al., Rigging the Lottery, 2020, section 3 (eq. 1).
    """
    if step >= end_step:
        return 0.0
    return alpha / 2 * (1 + math.cos(math.pi * step / end_step))


def cubic_ramp(progress: float, initial: float, final: float) -> float:
    """``final - (final - initial) (1 - progress)^3`` with progress clipped to [0, 1].

    Reference: Zhu and Gupta, To prune, or not to prune, 2017, section 3.
    """
    left = 1.0 - min(max(progress, 0.0), 1.0)
    return final - (final - initial) * left**3
