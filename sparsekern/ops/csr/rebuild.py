"""``csr_rebuild_``: the index of a new mask in the place of the old one."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from sparsekern._checks import check_device, check_dtype, check_shape, check_size, check_tensor
from sparsekern.kernels.launch import Launcher
from sparsekern.ops._define import Cost, Sample, define_op
from sparsekern.ops.csr._checks import check_index, check_rows
from sparsekern.ops.csr._samples import matrices
from sparsekern.ops.csr.from_mask import WIDEST, from_mask
from sparsekern.ops.csr.index import CsrIndex, build_index, index_from_mask
from sparsekern.ops.csr.panel_starts import PanelGeometry
from sparsekern.ops.csr.position_map import position_map
from sparsekern.ops.mask.bits import pack_bits, unpack_bits


def _reference(*args: Any) -> Tensor:
    index, mask, cols, taps = CsrIndex(*args[:7]), *args[7:]
    shape = (index.crow.shape[0] - 1, cols)
    matrix = unpack_bits(mask, shape) if mask.dtype == torch.uint8 else mask.reshape(shape)
    count = int(torch.count_nonzero(matrix))
    if count != index.nnz:
        raise RuntimeError(f"Expected mask to have {index.nnz} True entries. Got {count}.")
    crow, col = from_mask(matrix, count)
    new = build_index(crow, col, cols, taps if index.starts.numel() == 0 else None)
    positions = position_map(index.crow, index.col, crow, col)
    for own, tensor in zip(index, new, strict=True):
        own.copy_(tensor)
    return positions


def _check(*args: Any) -> None:
    index, mask, cols, taps = CsrIndex(*args[:7]), *args[7:]
    check_rows(index.crow, index.col)
    check_size(cols, "cols")
    if taps < 1 or cols % taps != 0:
        raise ValueError(f"Expected taps to divide {cols} columns. Got {taps}.")
    rows, nnz, device = index.crow.shape[0] - 1, index.nnz, index.col.device
    sizes = {"crow_t": cols // taps + 1, "col_t": nnz, "perm": nnz, "starts": 0, "starts_t": 0}
    if index.starts.numel() > 0:
        sizes["starts"] = PanelGeometry(rows, cols, nnz).numel
        sizes["starts_t"] = PanelGeometry(cols, rows, nnz).numel
        if taps != 1:
            raise ValueError(f"Expected taps to be 1 with panel starts. Got {taps}.")
    for name, size in sizes.items():
        check_index(name, getattr(index, name), size, device, "col")
    check_tensor(mask, "mask")
    check_dtype(mask, "mask", (torch.bool, torch.uint8))
    check_device(mask, "mask", device, "col")
    if mask.dtype == torch.uint8:
        check_shape(mask, "mask", ((rows * cols + 7) // 8,))
    elif mask.numel() != rows * cols:
        raise ValueError(
            f"Expected mask to have {rows * cols} elements, one a weight. Got {mask.numel()}."
        )


def _pairs(device: torch.device) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Masks of equal counts, before and after."""
    for name, mask in matrices():
        mask = mask.to(device)
        yield name, mask, mask.flip(1)
        yield f"{name}_moved", mask, mask.flip(0).roll(1, 0)
        yield f"{name}_same", mask, mask


def _samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    for name, old, new in _pairs(device):
        cols, small = old.shape[1], old.numel() < 100
        yield Sample((*index_from_mask(old), new, cols, 1), name, small=small)
        for taps in (1, 2, 9, 10):
            if cols % taps == 0 and old.numel() > 0:
                index = index_from_mask(old.view(old.shape[0], cols // taps, taps))
                yield Sample((*index, new, cols, taps), f"{name}_{taps}_taps", small=small)
    index = index_from_mask(torch.eye(3, dtype=torch.bool, device=device))
    new = torch.ones(3, 3, dtype=torch.bool, device=device).tril().triu()
    yield Sample((*index, pack_bits(new), 3, 1), "bits_small", small=True)
    yield Sample((*index, pack_bits(new) | 0, 3, 1), "bits", small=True)
    generator = torch.Generator().manual_seed(0)
    old = torch.rand(300, 700, generator=generator).to(device) < 0.2
    new = old.flip(0, 1)
    index = index_from_mask(old)
    yield Sample((*index, new.t().contiguous().t(), 700, 1), "strided")
    yield Sample((*index, pack_bits(new), 700, 1), "typical")


def _errors() -> Iterator[tuple[tuple[Any, ...], type[Exception], str]]:
    mask = torch.eye(3, dtype=torch.bool)
    index = index_from_mask(mask)
    yield (*index, ~mask, 3, 1), RuntimeError, "Expected mask to have 3 True entries. Got 6"
    yield (*index, mask[:2], 3, 1), ValueError, "Expected mask to have 9 elements"
    yield (*index, pack_bits(mask)[:1], 3, 1), ValueError, "Expected mask to have shape (2,)"
    yield (*index, mask.float(), 3, 1), TypeError, "Expected mask to have dtype torch.bool or"
    yield (*index, mask, 4, 1), ValueError, "Expected crow_t to have shape (5,). Got (4,)"
    yield (*index, mask, 3, 3), ValueError, "Expected taps to be 1 with panel starts. Got 3"
    yield (*index, mask, 3, 2), ValueError, "Expected taps to divide 3 columns. Got 2"
    short = index._replace(perm=index.perm[:2])
    yield (*short, mask, 3, 1), ValueError, "Expected perm to have shape (3,). Got (2,)"


def _cost(*args: Any) -> Cost:
    index, mask = CsrIndex(*args[:7]), args[7]
    read = index.crow.nbytes + index.col.nbytes + mask.nbytes
    return Cost(0, read, sum(tensor.nbytes for tensor in index) + index.col.nbytes)


def _limits(*args: Any) -> str | None:
    rows, cols, taps = args[0].shape[0] - 1, args[8], args[9]
    if max(cols, rows * taps) >= WIDEST:
        return f"the kernels take fewer than {WIDEST} rows and columns. Got {rows} x {cols}."
    if not all(tensor.is_contiguous() for tensor in args[:7]):
        return "the kernels write contiguous tensors. Got an index with gaps."
    return None


rebuild_op = define_op(
    "csr_rebuild_(Tensor(a!) crow, Tensor(b!) col, Tensor(c!) starts, Tensor(d!) crow_t, "
    "Tensor(e!) col_t, Tensor(f!) perm, Tensor(g!) starts_t, Tensor mask, SymInt cols, "
    "int taps) -> Tensor",
    reference=_reference,
    check=_check,
    fake=lambda *args: torch.empty_like(args[1]),
    setup=None,
    backward="an index has no gradient.",
    samples=_samples,
    errors=_errors,
    cost=_cost,
    triton=Launcher("csr.rebuild", "rebuild", _limits),
)


def rebuild_(index: CsrIndex, mask: Tensor, shape: Sequence[int]) -> Tensor:
    """``index = index_from_mask(mask)`` in place; returns where its entries were before.

    ``map[j]`` is the position in the old index of the entry at position ``j`` of the new one, or
    -1, as :func:`position_map` gives it. No tensor of the index moves in memory. Wrong arguments
    leave it as it was.

    Args:
        index: of a mask with as many entries, contiguous tensors.
        mask: bool, any strides, or uint8 as :func:`sparsekern.ops.mask.pack_bits` packs it.
        shape: of the mask: ``(O, I)``, or ``(O, I / groups, kh, kw)`` of a convolution.

    Returns:
        ``[nnz]`` int32. Per-weight state moves by :func:`move_`.

    Raises:
        TypeError, ValueError: shapes, dtypes or devices that do not fit.
        RuntimeError: the mask has another number of True entries than the index. On a GPU the host
            does not wait to learn that: index and positions stay as they are, ``map[j] = j``,
            unless SPARSEKERN_DEBUG=1 asks for the error.

    Gradients: none. Deterministic, for any number of threads. Cost: one read of the mask and of the
    old columns, one write of the index and of the map.
    """
    return rebuild_op(*index, mask, math.prod(shape[1:]), math.prod(shape[2:]))
