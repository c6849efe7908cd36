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


def fits_on_cpu(
    x: Tensor, values: Tensor, bias: Tensor | None, index: tuple[Tensor, ...], rows: int
) -> bool:
    """Whether :func:`check_operands` would find nothing in float32 operands on the CPU.

    PERF: this runs in every forward pass, where checks take 3.4 us with it and 5.2 without; those
    that can say what is wrong run only where this says no.
    """
    dtype = torch.float32
    if x.dtype is not dtype or values.dtype is not dtype or not x.is_cpu or not values.is_cpu:
        return False
    if bias is not None and not (
        bias.dtype is dtype and bias.is_cpu and bias.dim() == 1 and bias.numel() == rows
    ):
        return False
    for tensor in index:
        if tensor.dtype is not torch.int32 or not tensor.is_cpu or tensor.dim() != 1:
            return False
    _, col, _, _, col_t, perm, _ = index
    nnz = values.numel()
    return values.dim() == 1 and col.numel() == col_t.numel() == perm.numel() == nnz


def check_numbers(
    x: Tensor, values: Tensor, bias: Tensor | None, rows: int, shape: tuple[int, ...]
) -> None:
    """What every layer op asks of its numbers, beside the shape of ``x``; ``rows`` are those of the
    weight, ``shape`` is that of ``values``."""
    check_dtype(x, "x", ACTIVATION_DTYPES)
    check_dtype(values, "values", VALUE_DTYPES)
    if (x.dtype == torch.float64) != (values.dtype == torch.float64):
        raise TypeError(
            "Expected x and values to be float64 together or not at all. "
            f"Got {x.dtype} and {values.dtype}."
        )
    check_device(x, "x", values.device, "values")
    check_shape(values, "values", shape)
    if bias is not None:
        check_shape(bias, "bias", (rows,))
        check_dtype(bias, "bias", (values.dtype,))
        check_device(bias, "bias", values.device, "values")


def check_operands(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    probe: Tensor | None,
    matrix: tuple[int, int],
    index: dict[str, Tensor],
    block: tuple[int, ...] = (),
) -> None:
    """:func:`check_numbers`, and the tensors of an index; ``matrix`` is the shape of the weight as
    a matrix, ``block`` that of one entry of ``values``."""
    device, col = values.device, index["col"]
    check_numbers(x, values, bias, matrix[0], (*col.shape, *block))
    if probe is not None:
        check_shape(probe, "probe", matrix)
    # One comparison an index tensor: this runs in every forward and backward pass.
    if any(t.dtype != torch.int32 or t.device != device or t.ndim != 1 for t in index.values()):
        for name, tensor in index.items():
            check_index(name, tensor, None, device, "values")
    if index["col_t"].shape != col.shape or index["perm"].shape != col.shape:
        raise ValueError(
            f"Expected col, col_t and perm to have {col.shape[0]} elements. "
            f"Got {index['col_t'].shape[0]} and {index['perm'].shape[0]}."
        )
