"""Rows of the entries of a compressed matrix, in plain torch."""

import torch
from torch import Tensor


def row_of(crow: Tensor, nnz: int) -> Tensor:
    """Row of each entry, int64 ``[nnz]``; ``nnz`` is given so that no size depends on data."""
    rows = torch.arange(crow.shape[0] - 1, device=crow.device)
    counts = crow.diff().long()
    return torch.repeat_interleave(rows, counts, output_size=nnz)
