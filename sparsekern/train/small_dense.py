"""The width of the dense network that takes as long a step as the sparse one."""

from __future__ import annotations

from statistics import median

from sparsekern.data import Dataset
from sparsekern.train.network import build_network
from sparsekern.train.recipe import Recipe
from sparsekern.train.timing import Stage, mean_time, one_batch, time_steps

NARROWEST = 1 / 64
STEPS = 9
POWER = 1.5  # time grows with the width between linearly (overheads) and quadratically


def find_width(recipe: Recipe, dataset: Dataset, sparse: list[Stage], seconds: float) -> float:
    """The factor on the hidden sizes at which a dense step takes the sparse step's time.

    Starts from the square root of the density (as many weights). At each width the dense network is
    measured in turns with the sparse one, and the width is corrected by the ratio of the two times.
    Unlike a bisection this forgets a disturbed measurement; the median of the last five is taken.

    Args:
        recipe, dataset: of the run.
        sparse: the :func:`~sparsekern.train.timing.stages` of the sparse network; measuring
            changes them.
        seconds: to spend on each width.

    Returns:
        The width, in [:data:`NARROWEST`, 1]: a sparse network slower than the dense one is compared
        with that.
    """
    batch = one_batch(recipe, dataset)
    widths = [_within(sparse[-1].network.density ** 0.5)]
    for _ in range(STEPS):
        dense = build_network(recipe, dataset, "small_dense", recipe.seed, widths[-1])
        *own, dense_time = time_steps([*sparse, Stage(dense)], batch, seconds)
        ratio = mean_time(own).step_ms / dense_time.step_ms
        widths.append(_within(widths[-1] * ratio ** (1 / POWER)))
    return round(median(widths[-5:]), 4)


def _within(width: float) -> float:
    return min(max(width, NARROWEST), 1.0)
