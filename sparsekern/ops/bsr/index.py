"""The index of a block matrix: what kernels need besides the values."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from sparsekern._checks import check_dtype, check_tensor
from sparsekern.ops.csr.from_mask import from_mask
from sparsekern.ops.csr.transpose import transpose


class BsrIndex(NamedTuple):
    """Index tensors of an ``[O, I]`` matrix with ``n`` kept blocks of ``[h, w]``, all int32.

    They are those of the ``[O / h, I / w]`` matrix of blocks: ``crow`` [O / h + 1] and ``col`` [n]
    are torch's ``crow_indices`` and ``col_indices``; the same matrix by columns, ``crow_t``
    [I / w + 1], ``col_t`` [n] and ``perm`` [n] with ``blocks_t = blocks[perm]``, follows from them.
    """

    crow: Tensor
    col: Tensor
    crow_t: Tensor
    col_t: Tensor
    perm: Tensor

    @property
    def blocks(self) -> int:
        return self.col.shape[0]


def as_matrix(weight: Tensor) -> Tensor:
    """A weight as the matrix whose blocks are kept: ``[O, I]`` as it is, that of a convolution,
    ``[O, I / groups, kh, kw]``, as ``[O, kh * kw * I / groups]``."""
    return weight if weight.ndim == 2 else weight.movedim(1, -1).flatten(1)


def from_matrix(matrix: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The inverse of :func:`as_matrix` for a weight of ``shape``."""
    rows, channels, *kernel = shape
    if math.prod(kernel) == 1:  # also so that strides stay those of a contiguous tensor
        return matrix.reshape(shape)
    return matrix.view(rows, *kernel, channels).movedim(-1, 1).contiguous()


def split(matrix: Tensor, block_shape: tuple[int, int]) -> Tensor:
    """``[O, I]`` as ``[O / h, I / w, h, w]``, a view. Raises ValueError if it does not divide."""
    height, width = block_shape
    rows, cols = matrix.shape
    if rows % height != 0 or cols % width != 0:
        raise ValueError(
            f"Expected blocks of {height} x {width} to divide a {rows} x {cols} matrix. "
            "Got one that they do not: keep it dense, or use format='csr'."
        )
    return (
        matrix.unflatten(1, (cols // width, width))
        .unflatten(0, (rows // height, height))
        .permute(0, 2, 1, 3)
    )


def block_mask(mask: Tensor, block_shape: tuple[int, int]) -> Tensor:
    """Which blocks of a bool ``[O, I]`` mask are kept, ``[O / h, I / w]``.

    Raises:
        TypeError, ValueError: another dtype or number of dimensions; blocks that do not divide the
            matrix; a block that is kept in part.
    """
    check_tensor(mask, "mask", ndim=2)
    check_dtype(mask, "mask", (torch.bool,))
    parts = split(mask, block_shape).flatten(2)
    kept = parts.any(2)
    in_part = (kept & ~parts.all(2)).nonzero()
    if in_part.shape[0] > 0:
        row, col = in_part[0].tolist()
        height, width = block_shape
        raise ValueError(
            f"Expected mask to keep or drop whole blocks of {height} x {width}. Got "
            f"{in_part.shape[0]} blocks that it keeps in part, the first at row {row * height}, "
            f"column {col * width}."
        )
    return kept


def build_index(crow: Tensor, col: Tensor, block_columns: int) -> BsrIndex:
    """Everything that follows from ``crow`` and ``col`` of a matrix ``block_columns`` blocks wide.

    Raises:
        ValueError, TypeError: shapes, dtypes or devices that do not fit.
        RuntimeError: columns that are unsorted, repeated or out of range (native code).

    Cost: O(n + O / h + I / w).
    """
    return BsrIndex(crow, col, *transpose(crow, col, block_columns))


def index_from_mask(kept: Tensor) -> BsrIndex:
    """The index of a bool mask of blocks, ``[O / h, I / w]`` (:func:`block_mask`).

    Waits for a GPU once, for the number of blocks.
    """
    crow, col = from_mask(kept, int(torch.count_nonzero(kept)))
    return build_index(crow, col, kept.shape[1])


def element_positions(positions: Tensor, block_shape: tuple[int, int]) -> Tensor:
    """Old positions of blocks (-1: none) as those of their elements, int32 ``[n, h, w]``.

    Raises ValueError for 2^31 elements and more.
    """
    size = block_shape[0] * block_shape[1]
    if positions.shape[0] * size >= 2**31:
        raise ValueError(
            "Expected fewer than 2^31 weights in blocks that change places. "
            f"Got {positions.shape[0] * size}."
        )
    inside = torch.arange(size, dtype=torch.int32, device=positions.device)
    elements = torch.where(positions[:, None] >= 0, positions[:, None] * size + inside, -1)
    return elements.view(-1, *block_shape)
