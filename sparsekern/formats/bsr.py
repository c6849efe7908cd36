"""``bsr``: whole blocks are kept; one column index per block, dense arithmetic inside."""

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
from sparsekern.formats.csr import broken_rows
from sparsekern.formats.replace import replace_data
from sparsekern.ops import OPS, Op, bsr, csr
from sparsekern.ops import mask as mask_ops
from sparsekern.ops.bsr import BsrIndex
from sparsekern.patterns import Block

SQUARES = (32, 16, 8, 4, 2, 1)  # sides of the blocks that a mask is looked through for


class BsrFormat(SparseFormat):
    """Compact blocks: ``values`` is a Parameter of ``[n, h, w]``, blocks in row-major order.

    A weight ``[O, I / groups, kh, kw]`` of a convolution is stored as the matrix
    ``[O, kh * kw * I / groups]``. ``block`` (``h, w``), ``crow`` and ``col`` of the blocks are
    stored; the transposed index follows from them and is rebuilt at load. A checkpoint brings its
    shape of blocks with it.

    Bytes: 4 for a value, 12 for indices per kept block (``col``, ``col_t``, ``perm``).
    """

    name: ClassVar[str] = "bsr"
    master: ClassVar[str] = "compact"
    block: Tensor
    crow: Tensor
    col: Tensor
    crow_t: Tensor
    col_t: Tensor
    perm: Tensor

    def __init__(self, values: Tensor, index: BsrIndex, shape: tuple[int, ...]) -> None:
        super().__init__(shape)
        check_tensor(values, "values", ndim=3)
        if not isinstance(index, BsrIndex):
            raise TypeError(f"Expected index to be a BsrIndex. Got {type(index).__name__}.")
        block = Block(*values.shape[1:])
        block.check_divides(self.shape)
        rows, cols = self._grid(block.shape)
        check_shape(index.crow, "crow of index", (rows + 1,))
        check_shape(index.crow_t, "crow_t of index", (cols + 1,))
        for name in ("col", "col_t", "perm"):
            check_shape(getattr(index, name), f"{name} of index", (index.blocks,))
        check_shape(values, "values", (index.blocks, *block.shape))
        self.values = nn.Parameter(values)
        self.register_buffer("block", torch.tensor(block.shape, dtype=torch.int32))
        for name, tensor in zip(BsrIndex._fields, index, strict=True):
            self.register_buffer(name, tensor, persistent=name in ("crow", "col"))

    @classmethod
    def from_dense(
        cls,
        weight: Tensor,
        mask: Tensor | None = None,
        *,
        block_shape: tuple[int, int] | None = None,
    ) -> BsrFormat:
        """A new format that holds ``weight`` where ``mask`` (default: its non-zeros) is True.

        ``block_shape`` is ``(h, w)``; None takes the largest square of at most 32 x 32 of which the
        mask is made, if need be 1 x 1.

        Raises:
            TypeError, ValueError: blocks that do not divide the weight, or a mask that keeps a
                block in part.
        """
        check_tensor(weight, "weight")
        weight = weight.detach()
        mask = weight != 0 if mask is None else mask
        check_mask(mask, tuple(weight.shape), weight.device)
        block = detect_block(mask) if block_shape is None else Block(*block_shape)
        block.check_divides(tuple(weight.shape))
        index = bsr.index_from_mask(bsr.block_mask(bsr.as_matrix(mask), block.shape))
        values = bsr.gather(bsr.as_matrix(weight), index.crow, index.col, block.shape)
        return cls(values, index, tuple(weight.shape))

    def like(self, weight: Tensor, mask: Tensor) -> BsrFormat:
        return type(self).from_dense(weight, mask, block_shape=self.block_shape)

    @property
    def block_shape(self) -> tuple[int, int]:
        """``(h, w)``."""
        _, height, width = self.values.shape
        return height, width

    @property
    def pattern(self) -> Block:
        return Block(*self.block_shape)

    @property
    def index(self) -> BsrIndex:
        """The index tensors as the ops take them."""
        buffers = self._buffers
        return BsrIndex(*[buffers[name] for name in BsrIndex._fields])  # type: ignore[arg-type]

    @property
    def parameter(self) -> nn.Parameter:
        return self.values

    def adopt(self, parameter: nn.Parameter) -> None:
        replace_data(parameter, self.values.data)
        self.values = parameter

    @property
    def nnz(self) -> int:
        return self.values.numel()

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
        select = self._op.select
        if self.variant != "auto" or select is None:
            return self.variant
        # The ops' rules look at the device and at what is kept: an input without rows will do.
        options = {} if len(self.shape) == 2 else {"kernel_size": self.shape[2:]}
        x = self.values.new_empty(0, *self.shape[1:])
        return select(x, self.values, None, None, *self.index, **options)

    @property
    def fuses(self) -> bool:
        return self.running == "triton" and len(self.shape) == 2

    @property
    def _op(self) -> Op:
        """The op that multiplies by this weight."""
        return OPS["bsr_linear" if len(self.shape) == 2 else "bsr_conv2d"]

    @property
    def nbytes(self) -> FormatBytes:
        return FormatBytes(self.values.nbytes, sum(tensor.nbytes for tensor in self.index))

    def to_dense(self) -> Tensor:
        return self._dense(self.values)

    def _dense(self, values: Tensor) -> Tensor:
        columns = self._grid(self.block_shape)[1]
        return bsr.from_matrix(bsr.to_dense(values, self.crow, self.col, columns), self.shape)

    def mask(self, among: Tensor | None = None) -> Tensor:
        mask = self._dense(torch.ones_like(self.values, dtype=torch.bool))
        return mask if among is None else mask.masked_scatter(mask, among)

    def active_values(self, dense_or_parameter: Tensor | None = None) -> Tensor:
        values = self.values if dense_or_parameter is None else dense_or_parameter
        return self._dense(values.detach())[self.mask()]

    def linear(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        return self.activated_linear(x, bias, "none")

    def activated_linear(self, x: Tensor, bias: Tensor | None, activation: str) -> Tensor:
        return bsr.linear(
            x,
            self.values,
            self.index,
            bias,
            probe=self._probe,
            activation=activation,
            variant=self.variant,
        )

    def conv2d(self, x: Tensor, bias: Tensor | None = None, **geometry: Any) -> Tensor:
        return bsr.conv2d(
            x,
            self.values,
            self.index,
            bias,
            kernel_size=self.shape[2:],
            probe=self._probe,
            variant=self.variant,
            **geometry,
        )

    @torch.no_grad()
    def set_mask(self, mask: Tensor) -> TopologyChange:
        block = self.block_shape
        mask = self._check_mask(mask)
        if mask.dtype == torch.uint8:
            mask = mask_ops.unpack_bits(mask, self.shape)
        index = bsr.index_from_mask(bsr.block_mask(bsr.as_matrix(mask), block))
        blocks = csr.position_map(self.crow, self.col, index.crow, index.col)
        positions = bsr.element_positions(blocks, block)
        change = TopologyChange(positions=positions, old_numel=self.nnz)
        values = change.move(self.values.data)
        if index.blocks == self.values.shape[0]:
            self.values.copy_(values)
        else:
            replace_data(self.values, values)
        self._set_index(index)
        self._choose_variant()
        return change

    def _set_index(self, index: BsrIndex) -> None:
        for name, tensor in zip(BsrIndex._fields, index, strict=True):
            own = getattr(self, name)
            if own.shape == tensor.shape:
                own.copy_(tensor)
            else:
                setattr(self, name, tensor)

    def _grid(self, block: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of blocks."""
        rows, cols = self._matrix_shape()
        return rows // block[0], cols // block[1]

    def take_dense_grad(self) -> Tensor | None:
        probe, self._probe = self._probe, None
        if probe is None or probe.grad is None:
            return None
        return bsr.from_matrix(probe.grad, self.shape)

    def validate(self) -> None:
        reason = self._broken_rows(self.crow, self.col, self.values, self.block)
        if reason is not None:
            raise ValueError(reason)
        rebuilt = bsr.build_index(self.crow, self.col, self._grid(self.block_shape)[1])
        for name, own, right in zip(BsrIndex._fields, self.index, rebuilt, strict=True):
            if not torch.equal(own, right):
                raise ValueError(f"Expected {name} to follow from crow and col. Got another index.")

    def _broken_rows(
        self, crow: Tensor, col: Tensor, values: Tensor, block_shape: Tensor
    ) -> str | None:
        if values.ndim != 3 or list(values.shape[1:]) != block_shape.tolist():
            return (
                f"Expected values to have blocks of the shape in block, {block_shape.tolist()}. "
                f"Got {tuple(values.shape)}."
            )
        try:
            block = Block(*values.shape[1:])
            block.check_divides(self.shape)
        except ValueError as error:
            return str(error)
        return broken_rows(crow, col, values.shape[0], self._grid(block.shape))

    def _refuse_content(self, state_dict: Mapping[str, Any], prefix: str) -> str | None:
        stored = [state_dict[prefix + key] for key in ("crow", "col", "values", "block")]
        reason = self._broken_rows(*stored)
        return None if reason is None else f"{prefix[:-1]}: {reason}"

    def _prepare_load(self, state_dict: Mapping[str, Any], prefix: str) -> None:
        values = state_dict[prefix + "values"]
        if values.shape != self.values.shape:
            replace_data(self.values, self.values.data.new_zeros(values.shape))
        for key in ("crow", "col"):
            stored = state_dict[prefix + key]
            if stored.shape != getattr(self, key).shape:
                setattr(self, key, getattr(self, key).new_zeros(stored.shape))

    def _finish_load(self) -> None:
        columns = self._grid(self.block_shape)[1]
        self._set_index(bsr.build_index(self.crow, self.col, columns))
        self._choose_variant()

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, block_shape={self.block_shape}"


def detect_block(mask: Tensor) -> Block:
    """The largest square of which a mask is made, at most 32 x 32."""
    matrix = bsr.as_matrix(mask)
    for side in SQUARES:
        block = Block(side, side)
        if block.divides(tuple(mask.shape)):
            parts = bsr.split(matrix, block.shape).flatten(2)
            if torch.equal(parts.any(2), parts.all(2)):
                return block
    return Block(1, 1)


FORMATS.add(BsrFormat.name, BsrFormat)
