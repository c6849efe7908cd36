"""SET."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sparsekern._checks import check_fraction
from sparsekern.ops import mask as mask_ops
from sparsekern.prune.method import METHODS, Clock, Layer, Method
from sparsekern.prune.schedule import Periodic
from sparsekern.prune.scores import SCORES


@dataclass(frozen=True, kw_only=True)
class SET(Method):
    """Drop the weights closest to zero from both sides, grow as many at random.

    Every ``update_every`` steps ``n_drop = int(drop_fraction n)`` of a layer's ``n`` weights go:
    half of them (rounded up) the smallest positive ones, the rest the negative ones closest to
    zero; where one sign has too few, the other gives more. Exact zeros count as positive. As many
    random inactive positions are grown, with value and optimiser state zero. The optimiser steps on
    update iterations too.

    Args:
        density, distribution, pattern: see :class:`Method`.
        update_every: steps between two updates (the paper: an epoch).
        drop_fraction: share of a layer's weights dropped at each update, in [0, 1].
        end: fraction of the run after which the topology is fixed.

    Reference: Mocanu et al., Scalable training of artificial neural networks with adaptive sparse
    connectivity, 2018, algorithm 2.
    Differences from the authors' code: the routine called SET in several repositories keeps only
    the most negative weights; here negative weights are treated as the paper says. Just-dropped
    positions are not grown again in the same update. Blocks have no sign: those of
    smallest ``sum |w|`` are dropped. With ``FanIn()``, an output that has lost more weights than it
    has other positions gets some of them back.
    """

    name: ClassVar[str] = "set"
    regrows: ClassVar[bool] = False

    update_every: int = 100
    drop_fraction: float = 0.3
    end: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fraction(self.drop_fraction, "drop_fraction")
        self._schedule()

    def _schedule(self) -> Periodic:
        return Periodic(self.update_every, end=self.end)

    def is_update(self, clock: Clock) -> bool:
        return self._schedule().happens(*clock)

    def counts(self, layer: Layer, clock: Clock) -> tuple[int, int]:
        dropped = min(int(layer.nnz * self.drop_fraction), layer.numel - layer.nnz)
        return layer.nnz - dropped, dropped

    def keep(self, layer: Layer, count: int) -> Tensor:
        weights = layer.active_weights
        dropped = weights.numel() - count
        positive = weights >= 0
        n_positive = int(positive.sum())
        from_positive = min((dropped + 1) // 2, n_positive)
        from_negative = min(dropped - from_positive, weights.numel() - n_positive)
        from_positive = dropped - from_negative
        nearness = -SCORES["magnitude"](weights, None)
        gone = mask_ops.topk(nearness, from_positive, positive)
        return ~(gone | mask_ops.topk(nearness, from_negative, ~positive))

    def grow(self, layer: Layer, count: int, allowed: Tensor) -> Tensor:
        return super().grow(layer, count, allowed & ~layer.mask())

    def grow_scores(self, layer: Layer) -> Tensor:
        device = layer.format.parameter.device
        return SCORES["random"](
            torch.empty((), device=device).expand(layer.format.shape), layer.generator
        )


METHODS.add(SET.name, SET)
