"""The index of a block matrix: what kernels need besides the values."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sparsekern._checks import check_dtype, check_tensor
from sparsekern.ops.csr.from_mask import from_mask
from sparsekern.ops.csr.transpose import transpose

MAX_BLOCK = 64  # sides up to here are tested


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


def check_block_shape(value: object) -> tuple[int, int]:
    """``(h, w)`` of a block. Raises TypeError or ValueError for anything else."""
    pair = isinstance(value, (tuple, list)) and len(value) == 2
    if not pair or any(isinstance(n, bool) or not isinstance(n, int) for n in value):  # type: ignore[attr-defined]
        raise TypeError(f"Expected block_shape to be two integers. Got {value!r}.")
    height, width = value  # type: ignore[misc]
    if not (1 <= height <= MAX_BLOCK and 1 <= width <= MAX_BLOCK):
        raise ValueError(
            f"Expected block_shape to have sides of 1 to {MAX_BLOCK}. Got {(height, width)}."
        )
    return height, width


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
    """The index of a bool mask of blocks, ``[O / h, I / w]`` (:func:`block_mask`)."""
    crow, col = from_mask(kept, int(torch.count_nonzero(kept)))
    return build_index(crow, col, kept.shape[1])


def element_positions(positions: Tensor, block_shape: tuple[int, int]) -> Tensor:
    """Old positions of blocks (-1: none) as those of their elements, int32 ``[n, h, w]``."""
    size = block_shape[0] * block_shape[1]
    inside = torch.arange(size, dtype=torch.int32, device=positions.device)
    elements = torch.where(positions[:, None] >= 0, positions[:, None] * size + inside, -1)
    return elements.view(-1, *block_shape)
