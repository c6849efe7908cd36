"""``csr``: any mask; one value and one column index per kept weight, nothing for the rest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sparsekern._checks import check_mask, check_shape, check_tensor
from sparsekern.formats.base import (
    FORMATS,
    FormatBytes,
    SparseFormat,
    TopologyChange,
)
from sparsekern.formats.replace import replace_data
from sparsekern.ops import OPS, Op, csr
from sparsekern.ops import mask as mask_ops
from sparsekern.ops.csr import CsrIndex
from sparsekern.ops.csr._cuda import many_rows_run


class CsrFormat(SparseFormat):
    """Compact rows: ``values`` is a Parameter of ``[nnz]`` in row-major order of the mask.

    Weights, gradients, optimiser state and all-reduce shrink with the density. ``crow`` and ``col``
    are stored; the transposed index and the panel starts of both follow from them and are rebuilt
    at load.

    Bytes: 4 for a value, about 13 for indices per kept weight (``col``, ``col_t``, ``perm``, panel
    starts in both directions; those of convolutions are made in each call).
    """

    name: ClassVar[str] = "csr"
    master: ClassVar[str] = "compact"
    stored: ClassVar[tuple[str, ...]] = ("crow", "col")  # of the index; the rest follows
    crow: Tensor
    col: Tensor
    starts: Tensor
    crow_t: Tensor
    col_t: Tensor
    perm: Tensor
    starts_t: Tensor

    def __init__(self, values: Tensor, index: CsrIndex, shape: tuple[int, ...]) -> None:
        check_tensor(values, "values")
        super().__init__(shape, values.device)
        if not isinstance(index, CsrIndex):
            raise TypeError(f"Expected index to be a CsrIndex. Got {type(index).__name__}.")
        rows = self.shape[0]
        check_shape(index.crow, "crow of index", (rows + 1,))
        check_shape(index.crow_t, "crow_t of index", (self.shape[1] + 1,))
        for name in ("col", "col_t", "perm"):
            check_shape(getattr(index, name), f"{name} of index", (index.nnz,))
        check_shape(values, "values", (index.nnz,))
        self.values = nn.Parameter(values)
        for name, tensor in zip(CsrIndex._fields, index, strict=True):
            self.register_buffer(name, tensor, persistent=name in self.stored)

    @classmethod
    def from_dense(cls, weight: Tensor, mask: Tensor | None = None) -> CsrFormat:
        check_tensor(weight, "weight")
        weight = weight.detach()
        mask = weight != 0 if mask is None else mask
        check_mask(mask, tuple(weight.shape), weight.device)
        index = csr.index_from_mask(mask)
        values = csr.gather(weight.flatten(1), index.crow, index.col)
        return cls(values, index, tuple(weight.shape))

    @property
    def index(self) -> CsrIndex:
        """The index tensors as the ops take them."""
        buffers = self._buffers  # PERF: 0.7 us; seven times nn.Module.__getattr__ take 5 us
        return CsrIndex(*[buffers[name] for name in CsrIndex._fields])  # type: ignore[arg-type]

    @property
    def parameter(self) -> nn.Parameter:
        return self.values

    def adopt(self, parameter: nn.Parameter) -> None:
        replace_data(parameter, self.values.data)
        self.values = parameter

    @property
    def nnz(self) -> int:
        return self.values.shape[0]

    @property
    def variants(self) -> tuple[str, ...]:
        cuda = self.values.is_cuda
        known = self.known_variants
        return tuple(name for name in known if name == "dense" or (name == "triton") == cuda)

    @property
    def known_variants(self) -> tuple[str, ...]:
        return tuple(name for name in self._op.variants if name != "reference")

    @property
    def running(self) -> str:
        op = self._op
        if self.variant != "auto" or op.select is None:
            return self.variant
        if self.values.is_cuda:
            return many_rows_run(op, self.values, self.density)
        return op.select(self.values, self.values)  # the op's rule looks at the device alone

    @property
    def fuses(self) -> bool:
        return self.running in ("panel", "patch", "triton")

    @property
    def _op(self) -> Op:
        """The op that multiplies by this weight."""
        return OPS["csr_linear" if len(self.shape) == 2 else "csr_conv2d"]

    @property
    def nbytes(self) -> FormatBytes:
        return FormatBytes(self.values.nbytes, sum(tensor.nbytes for tensor in self.index))

    def to_dense(self) -> Tensor:
        return self._scatter(self.values)

    def _scatter(self, values: Tensor) -> Tensor:
        """``[nnz]`` numbers where the kept weights are, zeros elsewhere."""
        _, columns = self._matrix_shape()
        return csr.to_dense(values, self.crow, self.index.col, columns).view(self.shape)

    def mask(self, among: Tensor | None = None) -> Tensor:
        if among is None:
            among = torch.ones(self.nnz, dtype=torch.bool, device=self.col.device)
        return self._scatter(among)

    def active_values(self, dense_or_parameter: Tensor | None = None) -> Tensor:
        return self.values.detach() if dense_or_parameter is None else dense_or_parameter

    def linear(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        return self.activated_linear(x, bias, "none")

    def activated_linear(self, x: Tensor, bias: Tensor | None, activation: str) -> Tensor:
        return csr.linear(
            x,
            self.values,
            self.index,
            bias,
            probe=self._probe,
            activation=activation,
            variant=self.variant,
        )

    def conv2d(self, x: Tensor, bias: Tensor | None = None, **geometry: Any) -> Tensor:
        return self.activated_conv2d(x, bias, "none", **geometry)

    def activated_conv2d(
        self, x: Tensor, bias: Tensor | None, activation: str, **geometry: Any
    ) -> Tensor:
        return csr.conv2d(
            x,
            self.values,
            self.index,
            bias,
            kernel_size=self.shape[2:],
            probe=self._probe,
            activation=activation,
            variant=self.variant,
            **geometry,
        )

    @torch.no_grad()
    def set_mask(self, mask: Tensor) -> TopologyChange:
        mask = self._check_mask(mask)
        if mask_ops.count(mask) == self.nnz:
            positions = csr.rebuild_(self.index, mask, self.shape)
            change = TopologyChange(positions=positions, old_numel=self.nnz)
            change.move_(self.values)
            return change
        if mask.dtype == torch.uint8:
            mask = mask_ops.unpack_bits(mask, self.shape)
        index = csr.index_from_mask(mask)
        positions = csr.position_map(self.crow, self.index.col, index.crow, index.col)
        change = TopologyChange(positions=positions, old_numel=self.nnz)
        replace_data(self.values, change.move(self.values.data))
        self._set_index(index)
        self._choose_variant()
        return change

    def _set_index(self, index: CsrIndex) -> None:
        for name, tensor in zip(CsrIndex._fields, index, strict=True):
            own = getattr(self, name)
            if own.shape == tensor.shape:
                own.copy_(tensor)
            else:
                setattr(self, name, tensor)

    def validate(self) -> None:
        reason = self._broken({name: getattr(self, name) for name in self.stored}, self.nnz)
        if reason is not None:
            raise ValueError(reason)
        rebuilt = self._built_index()
        for name, own, right in zip(CsrIndex._fields, self.index, rebuilt, strict=True):
            if not torch.equal(own, right):
                raise ValueError(
                    f"Expected {name} to follow from {' and '.join(self.stored)}. "
                    "Got another index."
                )

    def _built_index(self) -> CsrIndex:
        """The index that follows from what is stored of it."""
        return csr.build_index(self.crow, self.col, self._matrix_shape()[1], self._taps())

    def _broken(self, stored: Mapping[str, Tensor], nnz: int) -> str | None:
        """What is wrong with the stored part of an index, in one sentence, or None."""
        return broken_rows(stored["crow"], stored["col"], nnz, self._matrix_shape())

    def _refuse_content(self, state_dict: Mapping[str, Any], prefix: str) -> str | None:
        stored = {name: state_dict[prefix + name] for name in self.stored}
        values = state_dict[prefix + "values"]
        if values.ndim == 1:
            reason = self._broken(stored, values.numel())
        else:
            reason = f"Expected values to have 1 dimension. Got shape {tuple(values.shape)}."
        return None if reason is None else f"{prefix[:-1]}: {reason}"

    def _prepare_load(self, state_dict: Mapping[str, Any], prefix: str) -> None:
        values = state_dict[prefix + "values"]
        if values.shape != self.values.shape:
            replace_data(self.values, self.values.data.new_zeros(values.shape))
            self.col = self.col.new_zeros(state_dict[prefix + "col"].shape)

    def _finish_load(self) -> None:
        self._set_index(self._built_index())
        self._choose_variant()


def broken_rows(crow: Tensor, col: Tensor, nnz: int, shape: tuple[int, int]) -> str | None:
    """What is wrong with the compressed rows of a matrix, in one sentence, or None."""
    rows, cols = shape
    if crow.dtype != torch.int32 or col.dtype != torch.int32:
        return f"Expected crow and col to be torch.int32. Got {crow.dtype} and {col.dtype}."
    if crow.shape != (rows + 1,) or col.shape != (nnz,):
        return (
            f"Expected crow to have {rows + 1} elements and col {nnz}. "
            f"Got {tuple(crow.shape)} and {tuple(col.shape)}."
        )
    if int(crow[0]) != 0 or int(crow[-1]) != nnz or bool((crow[1:] < crow[:-1]).any()):
        return f"Expected crow to rise from 0 to {nnz}. Got {int(crow[0])} to {int(crow[-1])}."
    if nnz and not 0 <= int(col.min()) <= int(col.max()) < cols:
        return f"Expected col to be in [0, {cols}). Got {int(col.min())} to {int(col.max())}."
    falls = torch.nonzero(col[1:] <= col[:-1]).flatten() + 1
    if not bool(torch.isin(falls, crow).all()):
        return "Expected col to rise strictly within each row. Got repeated or unsorted columns."
    return None


FORMATS.add(CsrFormat.name, CsrFormat)
