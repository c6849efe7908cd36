"""The index of a CSR matrix: what kernels need besides the values."""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor

from sparsekern.ops.csr.from_mask import from_mask
from sparsekern.ops.csr.panel_starts import panel_starts
from sparsekern.ops.csr.transpose import transpose
from sparsekern.ops.mask.bits import count


class CsrIndex(NamedTuple):
    """Index tensors of an ``[O, I]`` matrix with ``nnz`` kept entries, all int32.

    ``crow`` [O + 1] and ``col`` [nnz] are torch's ``crow_indices`` and ``col_indices``; the rest
    follows from them: the same matrix by columns (``crow_t`` [I + 1], ``col_t`` [nnz], and ``perm``
    [nnz] with ``values_t = values[perm]``), and where the rows of both begin in each panel of
    columns (``starts``, ``starts_t``; see :func:`sparsekern.ops.csr.panel_starts`).

    The index of a convolution's weight ``[O, I / groups, kh, kw]``, seen as the matrix
    ``[O, I / groups * kh * kw]``, has no panel starts (they are empty), and its transpose has one
    row an input channel: ``crow_t`` [I / groups + 1], ``col_t = o * kh * kw + tap``.
    """

    crow: Tensor
    col: Tensor
    starts: Tensor
    crow_t: Tensor
    col_t: Tensor
    perm: Tensor
    starts_t: Tensor

    @property
    def nnz(self) -> int:
        return self.col.shape[0]


def build_index(crow: Tensor, col: Tensor, in_features: int, taps: int | None = None) -> CsrIndex:
    """Everything that follows from ``crow`` and ``col`` of an ``[O, in_features]`` matrix.

    ``taps`` is the size ``kh * kw`` of a convolution's kernel; None: the weight of a linear layer.

    Raises:
        ValueError, TypeError: shapes, dtypes or devices that do not fit.
        RuntimeError: columns that are unsorted, repeated or out of range (native code).

    Cost: O(nnz + O + I); less than one training step of the layer at batch 128.
    """
    if taps is not None:
        crow_t, col_t, perm = transpose(crow, col, in_features, taps)
        nothing = crow.new_empty(0)
        return CsrIndex(crow, col, nothing, crow_t, col_t, perm, nothing.clone())
    crow_t, col_t, perm = transpose(crow, col, in_features)
    rows = crow.shape[0] - 1
    return CsrIndex(
        crow,
        col,
        panel_starts(crow, col, in_features),
        crow_t,
        col_t,
        perm,
        panel_starts(crow_t, col_t, rows),
    )


def index_from_mask(mask: Tensor, nnz: int | None = None) -> CsrIndex:
    """The index of a bool mask: ``[O, I]``, or ``[O, I / groups, kh, kw]`` of a convolution.

    ``nnz`` may be given to spare the count.
    """
    matrix = mask.flatten(1)
    crow, col = from_mask(matrix, count(mask) if nnz is None else nnz)
    taps = math.prod(mask.shape[2:]) if mask.ndim > 2 else None
    return build_index(crow, col, matrix.shape[1], taps)
