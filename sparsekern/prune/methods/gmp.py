"""GMP."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sparsekern._checks import check_fraction
from sparsekern.prune.method import METHODS, Clock, Layer, Method
from sparsekern.prune.schedule import Periodic, cubic_ramp


@dataclass(frozen=True, kw_only=True)
class GMP(Method):
    """Gradual magnitude pruning: from dense to the final density on a cubic ramp.

    The sparsity of a layer at progress ``p`` of the ramp is
    ``s = s_f - (s_f - s_i) (1 - p)^3``; the smallest ``|w|`` of the active weights go, and never
    come back. The topology is fixed from ``end`` on (``Pruner.compact()`` then makes the rest of
    the run cheap).

    Args:
        density, distribution, pattern: see :class:`Method`.
        update_every: steps between two prunings.
        begin, end: fractions of the run between which the ramp rises, 0 <= begin < end <= 1.
        initial_density: density at the start of the ramp, in [0, 1].

    Reference: Zhu and Gupta, To prune, or not to prune, 2017, section 3.
    Differences from the authors' code: counts are exact per layer (theirs are thresholds that drop
    all ties); the last update of the ramp lands on the final density wherever ``update_every``
    puts the others.
    """

    name: ClassVar[str] = "gmp"
    master: ClassVar[str] = "dense"
    initial_score: ClassVar[str] = "magnitude"
    min_steps: ClassVar[int] = 2  # the first update comes after the first step

    update_every: int = 100
    begin: float = 0.0
    end: float = 0.75
    initial_density: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fraction(self.begin, "begin")
        check_fraction(self.end, "end")
        check_fraction(self.initial_density, "initial_density")
        if self.begin >= self.end:
            raise ValueError(f"Expected begin to be below end. Got {self.begin} and {self.end}.")
        if self.initial_density < self.density:
            raise ValueError(
                f"Expected initial_density to be at least density, {self.density}. "
                f"Got {self.initial_density}."
            )
        Periodic(self.update_every)

    def _steps(self, clock: Clock) -> tuple[int, int]:
        """First and last step of the ramp, inside of the run; step 0 never has an update."""
        first = max(1, min(round(self.begin * clock.total_steps), clock.total_steps - 1))
        return first, max(first, round(self.end * clock.total_steps) - 1)

    def is_update(self, clock: Clock) -> bool:
        first, last = self._steps(clock)
        inside = first <= clock.step <= last
        return inside and ((clock.step - first) % self.update_every == 0 or clock.step == last)

    def initial_nnz(self, final_nnz: int, numel: int) -> int:
        return max(final_nnz, round(self.initial_density * numel))

    def counts(self, layer: Layer, clock: Clock) -> tuple[int, int]:
        first, last = self._steps(clock)
        progress = (clock.step - first) / (last - first) if last > first else 1.0
        initial = 1 - self.initial_nnz(layer.final_nnz, layer.numel) / layer.numel
        sparsity = cubic_ramp(progress, initial, 1 - layer.final_nnz / layer.numel)
        wanted = round((1 - sparsity) * layer.numel)
        return min(layer.nnz, max(wanted, layer.final_nnz)), 0


METHODS.add(GMP.name, GMP)
