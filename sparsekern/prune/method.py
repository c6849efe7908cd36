"""``Method``: the questions a sparse-training method answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from sparsekern._checks import check_fraction
from sparsekern._registry import Registry
from sparsekern.formats import SparseFormat
from sparsekern.ops import bsr, condensed
from sparsekern.ops import mask as mask_ops
from sparsekern.patterns import UNSTRUCTURED, Block, FanIn, Pattern
from sparsekern.prune.distribution import DISTRIBUTIONS
from sparsekern.prune.scores import SCORES
from sparsekern.prune.select import check_pattern

METHODS: Registry[type[Method]] = Registry("method")


class Clock(NamedTuple):
    """Where a run stands: ``step`` counts optimiser steps from 0."""

    step: int
    total_steps: int


@dataclass
class Layer:
    """What a method sees of one sparse weight.

    ``active`` numbers are ``[nnz]`` vectors in row-major order of the mask, so an inactive weight
    can never be mistaken for an active one of value zero; growth looks at dense tensors.
    ``dense_grad`` may hold a GradScaler's scale (``Pruner(one_backward=True)``): its order counts.
    """

    name: str
    format: SparseFormat
    final_nnz: int
    generator: torch.Generator
    dense_grad: Tensor | None = None
    memory: dict[str, Any] = field(default_factory=dict)

    @property
    def active_weights(self) -> Tensor:
        """``[nnz]`` kept weights."""
        return self.format.active_values()

    def mask(self) -> Tensor:
        """bool, shaped like the weight."""
        return self.format.mask()

    @property
    def nnz(self) -> int:
        return self.format.nnz

    @property
    def numel(self) -> int:
        return self.format.numel


@dataclass(frozen=True, kw_only=True)
class Method(ABC):
    """A sparse-training method: a frozen configuration that answers six questions.

    *When* (:meth:`is_update`), *how much* (:meth:`counts`), *where* (``distribution``), *which*
    (:meth:`keep` and :meth:`grow`, by default the largest :meth:`drop_scores` and
    :meth:`grow_scores`), *what shape* (``pattern``), and where the trainable numbers live
    (``master``). The :class:`~sparsekern.prune.Pruner` owns the loop; a method never touches an
    optimiser, a module class or the trainer.

    Args:
        density: fraction of weights kept at the end, over the converted layers, in [0, 1].
        distribution: how it is spread over layers: "uniform", "er" or "erk".
        pattern: what masks may look like. ``Block(h, w)``: whole blocks are dropped and grown, by
            the sums of their scores. ``FanIn()``: weights are dropped from the layer as a whole,
            and every output grows as many as it has lost; pruning alone drops as many from every
            output.
    """

    name: ClassVar[str]
    master: ClassVar[str] = "compact"  # "compact": constant count per layer; "dense": any change
    zeros: ClassVar[str] = "kept"  # weights outside of the mask are exactly zero
    needs: ClassVar[frozenset[str]] = frozenset()  # of {"dense_grad"}
    optimizer_steps_on_update: ClassVar[bool] = True
    initial_score: ClassVar[str] = "random"  # which weights are kept at the start
    regrows: ClassVar[bool] = True  # whether an update may grow again what it has dropped
    min_steps: ClassVar[int] = 1  # steps of the shortest run that ends at ``density``

    density: float = 0.1
    distribution: str = "erk"
    pattern: Pattern = UNSTRUCTURED

    def __post_init__(self) -> None:
        check_fraction(self.density, "density")
        _ = DISTRIBUTIONS[self.distribution], SCORES[self.initial_score]
        check_pattern(self.pattern, f"pattern of {self.name}")

    @abstractmethod
    def is_update(self, clock: Clock) -> bool:
        """When: whether the topology changes at this step."""

    def initial_nnz(self, final_nnz: int, numel: int) -> int:
        """How much at the start of a layer that ends with ``final_nnz`` of ``numel`` weights."""
        return final_nnz

    @abstractmethod
    def counts(self, layer: Layer, clock: Clock) -> tuple[int, int]:
        """How much: how many active weights stay, and how many are grown."""

    def drop_scores(self, layer: Layer) -> Tensor:
        """Which stay: ``[nnz]`` scores of the active weights, higher = keep."""
        return SCORES["magnitude"](layer.active_weights, layer.generator)

    def grow_scores(self, layer: Layer) -> Tensor:
        """Which are grown: scores shaped like the weight, higher = grow."""
        raise NotImplementedError(f"Expected {self.name} not to grow weights. Got a count above 0.")

    def keep(self, layer: Layer, count: int) -> Tensor:
        """bool ``[nnz]``: the active weights that stay."""
        return mask_ops.topk(self.drop_scores(layer), count)

    def grow(self, layer: Layer, count: int, allowed: Tensor) -> Tensor:
        """bool, shaped like the weight: the positions that are grown, among the allowed ones."""
        return mask_ops.topk(self.grow_scores(layer), count, allowed)

    def update(self, layer: Layer, clock: Clock) -> Tensor:
        """The new mask of one layer, composed of the answers above."""
        kept_count, grown_count = self.counts(layer, clock)
        if isinstance(self.pattern, Block):
            return self._update_blocks(layer, kept_count, grown_count, self.pattern)
        if isinstance(self.pattern, FanIn):
            return self._update_rows(layer, kept_count, grown_count)
        kept = layer.format.mask(self.keep(layer, kept_count))
        if grown_count == 0:
            return kept
        return kept | self.grow(layer, grown_count, ~kept)

    def _update_blocks(
        self, layer: Layer, kept_count: int, grown_count: int, block: Block
    ) -> Tensor:
        """The same for whole blocks, of which as many stay as hold ``kept_count`` weights, rounded
        up, and as many in all as before if the counts say so."""
        mask = layer.mask()
        active = bsr.block_any(mask, block.shape)
        kept_blocks = -(-kept_count // block.numel)
        total = (kept_count + grown_count) // block.numel
        drop = self.drop_scores(layer)
        scores = torch.zeros(mask.shape, dtype=drop.dtype, device=mask.device)
        scores[mask] = drop
        sums = bsr.block_sums(scores, block.shape)
        kept = mask_ops.topk(sums, kept_blocks, active)
        if total > kept_blocks:
            allowed = ~kept if self.regrows else ~active
            grow = bsr.block_sums(self.grow_scores(layer), block.shape)
            kept = kept | mask_ops.topk(grow, total - kept_blocks, allowed)
        return bsr.expand_blocks(kept, block.shape, tuple(mask.shape))

    def _update_rows(self, layer: Layer, kept_count: int, grown_count: int) -> Tensor:
        """The same with ``k`` weights in every row, as many as before if the counts say so, else
        rounded up.

        This is the update of SRigL without the ablation of neurons: a row above ``k`` loses those
        of lowest score, one below grows. Where a row has too few positions for a method that does
        not grow what it has just dropped, it takes some of those back.

        Reference: Lasby et al., Dynamic Sparse Training with Structured Sparsity, 2024, section 3.
        """
        mask = layer.mask()
        k = -(-(kept_count + grown_count) // max(1, mask.shape[0]))
        kept = layer.format.mask(self.keep(layer, kept_count)) if grown_count else mask
        counts = condensed.row_counts(kept)
        if bool((counts > k).any()):
            drop = self.drop_scores(layer)
            scores = torch.zeros(mask.shape, dtype=drop.dtype, device=mask.device)
            scores[mask] = drop
            counts.clamp_(max=k)
            kept = mask_ops.topk_rows(scores, counts, kept)
        if grown_count == 0:
            return kept
        scores, missing = self.grow_scores(layer), k - counts
        allowed = ~kept if self.regrows else ~mask
        taken = counts if self.regrows else condensed.row_counts(mask)
        room = torch.minimum(missing, mask[:1].numel() - taken)
        grown = kept | mask_ops.topk_rows(scores, room, allowed)
        if bool((room < missing).any()):
            grown |= mask_ops.topk_rows(scores, missing - room, ~grown)
        return grown
