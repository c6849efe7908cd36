"""Checks shared by the csr ops: shapes, dtypes and devices, never the index values."""

from __future__ import annotations

import torch
from torch import Tensor

from sparsekern._checks import check_device, check_dtype, check_shape, check_tensor

ACTIVATION_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
VALUE_DTYPES = (torch.float32, torch.float64)


def check_index(
    name: str, value: Tensor, size: int | None, device: torch.device, like: str
) -> None:
    """One int32 vector, of ``size`` elements where that is known."""
    check_tensor(value, name, ndim=1)
    check_dtype(value, name, (torch.int32,))
    check_device(value, name, device, like)
    if size is not None:
        check_shape(value, name, (size,))


def check_rows(crow: Tensor, col: Tensor) -> None:
    """``crow`` and ``col`` of one matrix."""
    check_tensor(col, "col", ndim=1)
    check_index("crow", crow, None, col.device, "col")
    check_index("col", col, None, col.device, "col")
    if crow.shape[0] < 1:
        raise ValueError("Expected crow to have one element more than rows. Got 0 elements.")
