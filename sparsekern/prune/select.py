"""Which weights a pattern lets a score keep: single ones, whole blocks, as many in every row."""

from __future__ import annotations

import math

from torch import Tensor, nn

from sparsekern._checks import check_fraction
from sparsekern.nn.convert import as_stored
from sparsekern.ops import bsr
from sparsekern.ops import mask as mask_ops
from sparsekern.patterns import Block, FanIn, Pattern, Unstructured
from sparsekern.prune.distribution import DISTRIBUTIONS, Shape, kept_counts
from sparsekern.prune.report import LayerReport, Target


def check_pattern(pattern: Pattern, name: str = "pattern") -> None:
    """Raises NotImplementedError for a pattern that no mask can be selected for."""
    if not isinstance(pattern, (Unstructured, Block, FanIn)):
        raise NotImplementedError(
            f"Expected {name} to be Unstructured(), Block(h, w) or FanIn(). Got {pattern!r}."
        )


def check_format(format: str, pattern: Pattern) -> None:
    """Raises ValueError for a format that needs another pattern."""
    if format == "bsr" and not isinstance(pattern, Block):
        raise ValueError(f"Expected pattern to be Block(h, w) with format='bsr'. Got {pattern!r}.")
    if format == "condensed" and not isinstance(pattern, FanIn):
        raise ValueError(
            f"Expected pattern to be FanIn() with format='condensed'. Got {pattern!r}."
        )


def unit(pattern: Pattern, shape: Shape) -> int:
    """How many weights of a layer are kept or dropped together."""
    if isinstance(pattern, FanIn):
        return shape[0]
    return pattern.numel if isinstance(pattern, Block) else 1


def layer_counts(
    shapes: list[Shape], density: float, distribution: str, pattern: Pattern
) -> list[int]:
    """Kept weights per layer, in units of its pattern (:func:`kept_counts`).

    With ``FanIn()`` every layer rounds for itself, to whole inputs of all its outputs and to one at
    least, so that the sum is that of ``density`` to half a weight an output.
    """
    if not isinstance(pattern, FanIn):
        step = pattern.numel if isinstance(pattern, Block) else 1
        return kept_counts(shapes, density, distribution, step)
    check_fraction(density, "density")
    densities = DISTRIBUTIONS[distribution](shapes, density)
    return [
        shape[0] * pattern.count(each, math.prod(shape[1:]))
        for shape, each in zip(shapes, densities, strict=True)
    ]


def stored_shapes(model: nn.Module, targets: list[Target]) -> list[Shape]:
    """Of the targets' weights as formats hold them, outputs first."""
    return [
        tuple(as_stored(model.get_submodule(t.names[0]), t.weight.detach()).shape) for t in targets
    ]


def divided(
    model: nn.Module, targets: list[Target], pattern: Pattern
) -> tuple[list[Target], list[LayerReport]]:
    """The targets that a pattern of blocks divides, and the others, which stay dense."""
    if not isinstance(pattern, Block):
        return targets, []
    fitting, others = [], []
    for target, shape in zip(targets, stored_shapes(model, targets), strict=True):
        if pattern.divides(shape):
            fitting.append(target)
            continue
        why = f"blocks of {pattern.height} x {pattern.width} do not divide it"
        numel = target.weight.numel()
        others.append(LayerReport(target.names, target.shape, "dense", numel, numel, why))
    return fitting, others


def select(
    model: nn.Module, target: Target, scores: Tensor, count: int, pattern: Pattern
) -> Tensor:
    """The mask of the ``count`` weights of highest score, of the blocks that have as many, or of as
    many in every row."""
    if isinstance(pattern, Unstructured):
        return mask_ops.topk(scores, count)
    layer = model.get_submodule(target.names[0])
    if isinstance(pattern, FanIn):
        rows = as_stored(layer, scores)
        return as_stored(layer, mask_ops.topk_rows(rows, count // max(1, rows.shape[0])))
    assert isinstance(pattern, Block)
    blocks = bsr.block_topk(as_stored(layer, scores), count // pattern.numel, pattern.shape)
    return as_stored(layer, blocks)
