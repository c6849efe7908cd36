"""Which weights a pattern lets a score keep: single ones, or whole blocks."""

from __future__ import annotations

from torch import Tensor, nn

from sparsekern.nn.convert import as_stored
from sparsekern.ops import bsr
from sparsekern.ops import mask as mask_ops
from sparsekern.patterns import Block, Pattern, Unstructured
from sparsekern.prune.report import LayerReport, Target


def check_pattern(pattern: Pattern, name: str = "pattern") -> None:
    """Raises NotImplementedError for a pattern that no mask can be selected for."""
    if not isinstance(pattern, (Unstructured, Block)):
        raise NotImplementedError(
            f"Expected {name} to be Unstructured() or Block(h, w). Got {pattern!r}."
        )


def check_format(format: str, pattern: Pattern) -> None:
    """Raises ValueError for blocks whose shape no one has said."""
    if format == "bsr" and not isinstance(pattern, Block):
        raise ValueError(f"Expected pattern to be Block(h, w) with format='bsr'. Got {pattern!r}.")


def unit(pattern: Pattern) -> int:
    """How many weights are kept or dropped together."""
    return pattern.numel if isinstance(pattern, Block) else 1


def divided(
    model: nn.Module, targets: list[Target], pattern: Pattern
) -> tuple[list[Target], list[LayerReport]]:
    """The targets that a pattern of blocks divides, and the others, which stay dense."""
    if not isinstance(pattern, Block):
        return targets, []
    fitting, others = [], []
    for target in targets:
        stored = as_stored(model.get_submodule(target.names[0]), target.weight.detach())
        if pattern.divides(tuple(stored.shape)):
            fitting.append(target)
            continue
        why = f"blocks of {pattern.height} x {pattern.width} do not divide it"
        numel = target.weight.numel()
        others.append(LayerReport(target.names, target.shape, "dense", numel, numel, why))
    return fitting, others


def select(
    model: nn.Module, target: Target, scores: Tensor, count: int, pattern: Pattern
) -> Tensor:
    """The mask of the ``count`` weights of highest score, or of the blocks that have as many."""
    if not isinstance(pattern, Block):
        return mask_ops.topk(scores, count)
    layer = model.get_submodule(target.names[0])
    blocks = bsr.block_topk(as_stored(layer, scores), count // pattern.numel, pattern.shape)
    return as_stored(layer, blocks)
