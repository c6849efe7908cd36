"""Static random sparsity."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sparsekern.prune.method import METHODS, Clock, Layer, Method


@dataclass(frozen=True, kw_only=True)
class Static(Method):
    """A random mask drawn once, never changed: the baseline of every dynamic method.

    Args:
        density, distribution, pattern: see :class:`Method`.

    Reference: Liu et al., The Unreasonable Effectiveness of Random Pruning, 2022, section 3.
    Differences from the authors' code: the count per layer is exact, not a Bernoulli draw.
    """

    name: ClassVar[str] = "static"

    def is_update(self, clock: Clock) -> bool:
        return False

    def counts(self, layer: Layer, clock: Clock) -> tuple[int, int]:
        return layer.nnz, 0


METHODS.add(Static.name, Static)
