"""Masks of whole blocks: selected by the sum of their scores."""

from __future__ import annotations

from torch import Tensor

from sparsekern.ops.bsr.index import as_matrix, from_matrix, split
from sparsekern.ops.mask.topk import topk


def block_sums(scores: Tensor, block_shape: tuple[int, int]) -> Tensor:
    """``sums[R, C] = sum of the scores of block (R, C)``, ``[O / h, I / w]``.

    Args:
        scores: shaped like a weight, ``[O, I]`` or ``[O, I / groups, kh, kw]``, float32 or float64.
        block_shape: ``(h, w)``, of the matrix that the weight is (``bsr.as_matrix``).
    """
    return split(as_matrix(scores), block_shape).sum((2, 3))


def block_any(mask: Tensor, block_shape: tuple[int, int]) -> Tensor:
    """Which blocks have a True entry, ``[O / h, I / w]``; see :func:`block_sums`."""
    return split(as_matrix(mask), block_shape).flatten(2).any(2)


def expand_blocks(kept: Tensor, block_shape: tuple[int, int], shape: tuple[int, ...]) -> Tensor:
    """A mask of blocks, ``[O / h, I / w]``, as one of the weights, shaped like the weight."""
    height, width = block_shape
    matrix = kept.repeat_interleave(height, 0).repeat_interleave(width, 1)
    return from_matrix(matrix, shape).contiguous()


def block_topk(scores: Tensor, k: int, block_shape: tuple[int, int]) -> Tensor:
    """The mask of the ``k`` blocks of largest sum of scores, shaped like ``scores``; of equal ones,
    the first in row-major order.

    Raises:
        TypeError, ValueError: as :func:`topk`, for the sums; blocks that do not divide the weight.

    Gradients: none. Deterministic. Cost: one read of the scores, one write of the mask.
    """
    kept = topk(block_sums(scores, block_shape), k)
    return expand_blocks(kept, block_shape, tuple(scores.shape))


__all__ = ["block_any", "block_sums", "block_topk", "expand_blocks"]
