"""``condensed``: constant fan-in; every output keeps ``k`` weights, so columns say it all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from sparsekern.formats.base import FORMATS, TopologyChange
from sparsekern.formats.csr import CsrFormat, broken_rows
from sparsekern.ops import condensed
from sparsekern.ops import mask as mask_ops
from sparsekern.ops._activation import activate
from sparsekern.ops.csr import CsrIndex
from sparsekern.patterns import FanIn

# PERF: up to this batch own kernels take 0.78 to 0.98 of the time of csr's (1024 to 1024 and 4096
# to 4096, densities 0.1 to 0.01, Zen 5, one thread).
SMALL_BATCH = 16


class CondensedFormat(CsrFormat):
    """Compact rows of one length ``k``: ``values`` is a Parameter of ``[O k]`` in row-major order
    of the mask, ``col`` ``[O, k]`` holds the input of each.

    Of the index only ``col`` is stored; the rest is that of :class:`CsrFormat`, whose kernels run,
    and is rebuilt at load. Linear layers on the CPU without gradients run kernels of their own for
    batches of at most 16 (:func:`sparsekern.ops.condensed.linear`), but under ``torch.compile``.
    The weight of a convolution is the matrix ``[O, I / groups * kh * kw]``. A change of topology
    keeps the rows of one length, if need be another one for all.

    Bytes: 4 for a value, about 13 for indices per kept weight, as csr.

    Raises:
        ValueError: a mask or an index whose rows keep different numbers of weights.

    Reference: Lasby et al., Dynamic Sparse Training with Structured Sparsity, 2024, "condensed"
    matrices.
    """

    name: ClassVar[str] = "condensed"
    stored: ClassVar[tuple[str, ...]] = ("col",)

    def __init__(self, values: Tensor, index: CsrIndex, shape: tuple[int, ...]) -> None:
        super().__init__(values, index, shape)
        self.col = index.col.view(len(index.crow) - 1, condensed.fan_in_of(index.crow))

    @property
    def pattern(self) -> FanIn:
        return FanIn()

    @property
    def fan_in(self) -> int:
        """``k``: weights that every output keeps."""
        return self.col.shape[1]

    @property
    def index(self) -> CsrIndex:
        buffers = {**self._buffers, "col": self._buffers["col"].flatten()}  # type: ignore[union-attr]
        return CsrIndex(*[buffers[name] for name in CsrIndex._fields])  # type: ignore[arg-type]

    def activated_linear(self, x: Tensor, bias: Tensor | None, activation: str) -> Tensor:
        if (
            torch.is_grad_enabled()
            or torch.compiler.is_compiling()
            or self._variant == "dense"
            or not isinstance(x, Tensor)
            or x.numel() > SMALL_BATCH * self.shape[1]
            or x.device.type != "cpu"
        ):
            return super().activated_linear(x, bias, activation)
        y = condensed.linear(x, self.values, self.col, self.shape[1], bias)
        return activate(y, activation)

    @torch.no_grad()
    def set_mask(self, mask: Tensor) -> TopologyChange:
        mask = self._check_mask(mask)
        if mask.dtype == torch.uint8:
            mask = mask_ops.unpack_bits(mask, self.shape)
        condensed.fan_in(mask)
        return super().set_mask(mask)

    def _set_index(self, index: CsrIndex) -> None:
        rows = self.shape[0]
        col = index.col.view(rows, index.nnz // rows if rows else 0)
        super()._set_index(index._replace(col=col))

    def _built_index(self) -> CsrIndex:
        return condensed.build_index(self.col, self._matrix_shape()[1], self._taps())

    def _broken(self, stored: Mapping[str, Tensor], nnz: int) -> str | None:
        col, (rows, cols) = stored["col"], self._matrix_shape()
        if col.ndim != 2 or col.shape[0] != rows or col.numel() != nnz:
            return (
                f"Expected col to have {rows} rows and as many elements as values, {nnz}. "
                f"Got shape {tuple(col.shape)}."
            )
        crow = condensed.row_pointers(rows, col.shape[1], col.device)
        return broken_rows(crow, col.flatten(), nnz, (rows, cols))

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, fan_in={self.fan_in}"


FORMATS.add(CondensedFormat.name, CondensedFormat)
