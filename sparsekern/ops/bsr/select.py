"""Masks of whole blocks: selected by the sum of their scores."""

from __future__ import annotations

from torch import Tensor

from sparsekern.ops.bsr.index import as_matrix, from_matrix, split
from sparsekern.ops.mask.topk import topk


def block_sums(scores: Tensor, block_shape: tuple[int, int]) -> Tensor:
    """``sums[R, C] = sum of the scores of block (R, C)``.

    Args:
        scores: float32 or float64, shaped like a weight: ``[O, I]``, or
            ``[O, I / groups, kh, kw]``, seen as :func:`sparsekern.ops.bsr.as_matrix` does.
        block_shape: ``(h, w)``.

    Returns:
        ``[O / h, I / w]`` of the dtype of ``scores``.

    Raises:
        ValueError: blocks that do not divide the weight.

    Gradients: of ``scores``. Deterministic. Cost: one read of the scores.
    """
    return split(as_matrix(scores), block_shape).sum((2, 3))


def block_any(mask: Tensor, block_shape: tuple[int, int]) -> Tensor:
    """``any[R, C]`` = block ``(R, C)`` has a True entry.

    Args:
        mask: bool, shaped like a weight (:func:`block_sums`).
        block_shape: ``(h, w)``.

    Returns:
        bool ``[O / h, I / w]``.

    Raises:
        ValueError: blocks that do not divide the weight.

    Gradients: none. Deterministic. Cost: one read of the mask.
    """
    return split(as_matrix(mask), block_shape).flatten(2).any(2)


def expand_blocks(kept: Tensor, block_shape: tuple[int, int], shape: tuple[int, ...]) -> Tensor:
    """``mask[r, c] = kept[r // h, c // w]``, as the weight has it.

    Args:
        kept: bool ``[O / h, I / w]``.
        block_shape: ``(h, w)``.
        shape: of the weight, ``(O, I)`` or ``(O, I / groups, kh, kw)``.

    Returns:
        bool of that shape.

    Raises:
        RuntimeError: a shape that does not have as many weights as the blocks.

    Gradients: none. Deterministic. Cost: two writes of the mask.
    """
    height, width = block_shape
    matrix = kept.repeat_interleave(height, 0).repeat_interleave(width, 1)
    return from_matrix(matrix, shape)


def block_topk(scores: Tensor, k: int, block_shape: tuple[int, int]) -> Tensor:
    """The mask of the ``k`` blocks of largest sum of scores; of equal ones, the first in row-major
    order.

    Args:
        scores: float32 or float64, shaped like a weight (:func:`block_sums`).
        k: how many blocks to keep.
        block_shape: ``(h, w)``.

    Returns:
        bool of the shape of ``scores``, with exactly ``k h w`` True entries.

    Raises:
        TypeError, ValueError: as :func:`topk`, for the sums; blocks that do not divide the weight.

    Gradients: none. Deterministic. Cost: one read of the scores, two writes of the mask.
    """
    kept = topk(block_sums(scores, block_shape), k)
    return expand_blocks(kept, block_shape, tuple(scores.shape))


__all__ = ["block_any", "block_sums", "block_topk", "expand_blocks"]
