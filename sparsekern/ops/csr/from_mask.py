"""``csr_from_mask``: the compressed rows of a mask."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from sparsekern._checks import check_dtype, check_tensor
from sparsekern.kernels.launch import Launcher
from sparsekern.ops._define import Cost, Sample, define_op
from sparsekern.ops.csr._samples import matrices

WIDEST = 2**31 - 2**17  # columns: a tile of flags behind the last one is still an int32


def _reference(mask: Tensor, nnz: int) -> tuple[Tensor, Tensor]:
    counts = torch.cat([mask.new_zeros(1, dtype=torch.int64), mask.sum(1).cumsum(0)])
    col = mask.nonzero()[:, 1].to(torch.int32)
    if col.shape[0] != nnz:
        raise RuntimeError(
            f"Expected nnz to be the number of True entries of mask, {col.shape[0]}. Got {nnz}."
        )
    return counts.to(torch.int32), col.contiguous()


def _check(mask: Tensor, nnz: int) -> None:
    check_tensor(mask, "mask", ndim=2)
    check_dtype(mask, "mask", (torch.bool,))
    if not isinstance(nnz, torch.SymInt) and not 0 <= nnz < 2**31:
        raise ValueError(f"Expected nnz to be at least 0 and below 2^31. Got {nnz}.")


def _fake(mask: Tensor, nnz: int) -> tuple[Tensor, Tensor]:
    return (
        mask.new_empty(mask.shape[0] + 1, dtype=torch.int32),
        mask.new_empty(nnz, dtype=torch.int32),
    )


def _samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    for name, mask in matrices():
        yield Sample((mask.to(device), int(mask.sum())), name, small=mask.numel() < 100)
    mask = torch.rand(20, 30, generator=torch.Generator().manual_seed(0)) < 0.3
    yield Sample((mask.to(device).t(), int(mask.sum())), "transposed")


def _errors() -> Iterator[tuple[tuple[Any, ...], type[Exception], str]]:
    mask = torch.eye(3, dtype=torch.bool)
    yield (mask.float(), 3), TypeError, "Expected mask to have dtype torch.bool"
    yield (mask[0], 1), ValueError, "Expected mask to have 2 dimensions"
    yield (mask, -1), ValueError, "Expected nnz to be at least 0"
    yield (mask, 2), RuntimeError, "Expected nnz to be the number of True entries"


def _cost(mask: Tensor, nnz: int) -> Cost:
    return Cost(flops=0, bytes_read=2 * mask.numel(), bytes_written=4 * (nnz + mask.shape[0] + 1))


def _limits(mask: Tensor, nnz: int) -> str | None:
    if mask.shape[1] >= WIDEST:
        return f"the kernels take fewer than {WIDEST} columns. Got {mask.shape[1]}."
    return None


from_mask_op = define_op(
    "csr_from_mask(Tensor mask, SymInt nnz) -> (Tensor, Tensor)",
    reference=_reference,
    check=_check,
    fake=_fake,
    setup=None,
    backward="an index has no gradient.",
    samples=_samples,
    errors=_errors,
    cost=_cost,
    triton=Launcher("csr.index", "from_mask", _limits),
)


def from_mask(mask: Tensor, nnz: int) -> tuple[Tensor, Tensor]:
    """``crow[r] = #True above row r``; ``col`` = the True columns of each row, ascending.

    Args:
        mask: ``[O, I]`` bool, any strides.
        nnz: number of True entries (given, so that no output size depends on data).

    Returns:
        ``crow`` ``[O + 1]`` and ``col`` ``[nnz]``, int32.

    Raises:
        TypeError, ValueError: another dtype or number of dimensions.
        RuntimeError: ``nnz`` is not the number of True entries. On a GPU the host does not wait to
            learn that: the index ends after ``nnz`` entries or has zeros behind its last row,
            unless SPARSEKERN_DEBUG=1 asks for the error.

    Gradients: none. Deterministic. Cost: two reads of the mask, one write of the index.
    """
    return from_mask_op(mask, nnz)
