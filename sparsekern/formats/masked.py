"""``masked``: a dense master weight with a bit mask; runs dense or on csr kernels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsekern._checks import check_mask, check_tensor
from sparsekern.formats.base import (
    FORMATS,
    FormatBytes,
    SparseFormat,
    TopologyChange,
)
from sparsekern.formats.plan import choose_kernel, forward_alone_is_dense
from sparsekern.formats.replace import replace_data
from sparsekern.ops import csr
from sparsekern.ops import mask as mask_ops
from sparsekern.ops._activation import activate
from sparsekern.ops._geometry import output_size
from sparsekern.ops.csr import CsrIndex

_GEOMETRY = ("stride", "padding", "dilation", "groups")


class MaskedFormat(SparseFormat):
    """A dense master: the Parameter keeps the dense shape, so a mask may change in any way.

    Weights outside of the mask are exactly zero and their gradient is zero, so any element-wise
    optimiser leaves them at zero; ``sk.optim.MaskedAdamW`` and ``MaskedSGD`` know the mask and take
    one pass. ``variant`` says what runs: "dense" (torch's matmul on the masked
    weight) or "csr" (the kept weights are gathered and multiplied by the csr kernels); with
    ``variant="auto"`` each new mask decides by the fixed rule of :func:`choose_kernel`, and small
    batches without gradients take the dense weight (:func:`forward_alone_is_dense`).

    Bytes: 4 for each weight, one bit for the mask, and the csr index while that kernel runs.
    """

    name: ClassVar[str] = "masked"
    master: ClassVar[str] = "dense"
    bits: Tensor

    def __init__(self, weight: Tensor, mask: Tensor, variant: str = "auto") -> None:
        check_mask(mask, tuple(weight.shape), weight.device)
        super().__init__(tuple(weight.shape), weight.device)
        self._check_variant(variant)
        self.weight = nn.Parameter(weight)
        self.register_buffer("bits", mask_ops.pack_bits(mask))
        for name in CsrIndex._fields:
            self.register_buffer(name, None, persistent=False)
        self._wanted = variant
        self._refresh()

    @classmethod
    def from_dense(
        cls, weight: Tensor, mask: Tensor | None = None, variant: str = "auto"
    ) -> MaskedFormat:
        check_tensor(weight, "weight")
        weight = weight.detach().clone(memory_format=torch.contiguous_format)
        mask = weight != 0 if mask is None else mask
        return cls(weight, mask, variant)

    @property
    def parameter(self) -> nn.Parameter:
        return self.weight

    def adopt(self, parameter: nn.Parameter) -> None:
        replace_data(parameter, self.weight.data)
        self.weight = parameter

    @property
    def nnz(self) -> int:
        return self._nnz

    @property
    def variants(self) -> tuple[str, ...]:
        return ("dense", "csr")

    @property
    def running(self) -> str:
        return "dense" if self.index is None else "csr"

    @property
    def fuses(self) -> bool:
        return self.index is not None

    @property
    def index(self) -> CsrIndex | None:
        """The csr index while the csr kernel runs, else None."""
        buffers = self._buffers  # PERF: nn.Module.__getattr__ takes 5 us for seven of them
        if buffers["crow"] is None:
            return None
        return CsrIndex(*[buffers[name] for name in CsrIndex._fields])  # type: ignore[arg-type]

    @property
    def nbytes(self) -> FormatBytes:
        index = self.index
        layouts = 0 if index is None else sum(tensor.nbytes for tensor in index)
        return FormatBytes(self.weight.nbytes, self.bits.nbytes + layouts)

    def to_dense(self) -> Tensor:
        return self.weight * self.mask()

    def mask(self, among: Tensor | None = None) -> Tensor:
        mask = mask_ops.unpack_bits(self.bits, self.shape)
        return mask if among is None else mask.masked_scatter(mask, among)

    def active_values(self, dense_or_parameter: Tensor | None = None) -> Tensor:
        dense = self.weight.detach() if dense_or_parameter is None else dense_or_parameter
        return dense[self.mask()]

    def linear(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        return self.activated_linear(x, bias, "none")

    def activated_linear(self, x: Tensor, bias: Tensor | None, activation: str) -> Tensor:
        weight = self.weight
        plain = self._may_be_plain(x, bias) and x.ndim > 0 and x.shape[-1] == weight.shape[1]
        if plain and self._is_dense_at(x.shape[:-1].numel()):
            return activate(F.linear(x, weight, bias), activation)
        index = self.index
        if index is None:
            z = mask_ops.linear(x, weight, self.bits, bias, probe=self._probe)
            return activate(z, activation)
        values = csr.gather(weight, index.crow, index.col)
        return csr.linear(x, values, index, bias, probe=self._probe, activation=activation)

    def conv2d(
        self,
        x: Tensor,
        bias: Tensor | None = None,
        *,
        stride: tuple[int, int] = (1, 1),
        padding: tuple[int, int] = (0, 0),
        dilation: tuple[int, int] = (1, 1),
        groups: int = 1,
    ) -> Tensor:
        geometry = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
        return self.activated_conv2d(x, bias, "none", **geometry)

    def activated_conv2d(
        self, x: Tensor, bias: Tensor | None, activation: str, **geometry: Any
    ) -> Tensor:
        stride, padding, dilation, groups = (geometry[name] for name in _GEOMETRY)
        weight = self.weight
        taps = self.shape[2:]
        plain = self._may_be_plain(x, bias) and x.ndim == 4
        if plain and x.shape[1] == weight.shape[1] * groups:
            high, wide = output_size(x.shape[2:], taps, stride, padding, dilation)
            if min(high, wide) > 0 and self._is_dense_at(x.shape[0], convolution=True):
                y = F.conv2d(x, weight, bias, stride, padding, dilation, groups)
                return activate(y, activation)
        index = self.index
        if index is None:
            y = mask_ops.conv2d(x, weight, self.bits, bias, probe=self._probe, **geometry)
            return activate(y, activation)
        values = csr.gather(weight.flatten(1), index.crow, index.col)
        options: dict[str, Any] = {"probe": self._probe, "activation": activation, **geometry}
        return csr.conv2d(x, values, index, bias, kernel_size=taps, **options)

    def _may_be_plain(self, x: Tensor, bias: Tensor | None) -> bool:
        """Whether torch's own layer of the masked weight gives all that is wanted: no gradients,
        no dtypes to convert, and no graph in which a size must stay open."""
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return False
        return x.dtype == self.weight.dtype and (bias is None or bias.dtype == x.dtype)

    def _is_dense_at(self, batch: int, convolution: bool = False) -> bool:
        """Whether dense is what runs a forward pass of so many rows or images."""
        if self._buffers["crow"] is None:
            return True
        return self._variant == "auto" and forward_alone_is_dense(
            self.density, batch, convolution=convolution
        )

    @torch.no_grad()
    def set_mask(self, mask: Tensor) -> TopologyChange:
        bits = self._check_mask(mask)
        if bits.dtype == torch.bool:
            bits = mask_ops.pack_bits(bits)
        change = TopologyChange(kept=mask_ops.unpack_bits(self.bits & bits, self.shape))
        self.bits.copy_(bits)
        self._refresh()
        return change

    @torch.no_grad()
    def _refresh(self) -> None:
        """Zeroes the weights outside of the mask and rebuilds what follows from it."""
        mask_ops.apply_(self.weight.data, self.bits)
        torch.autograd.graph.increment_version(self.weight)  # `.data` has a count of its own
        self._nnz = mask_ops.count(self.bits)
        self._choose_variant(mask_changed=True)

    @torch.no_grad()
    def _choose_variant(self, mask_changed: bool = False) -> None:
        super()._choose_variant()
        kernel = self.variant
        if kernel == "auto":
            kernel = choose_kernel(self.density, self.weight.device)
        if kernel == "dense":
            self._set_index(None)
        elif mask_changed or self.index is None:
            self._set_index(csr.index_from_mask(self.mask(), self._nnz))

    def _set_index(self, index: CsrIndex | None) -> None:
        for i, name in enumerate(CsrIndex._fields):
            own, new = self._buffers[name], None if index is None else index[i]
            if own is not None and new is not None and own.shape == new.shape:
                own.copy_(new)  # where it lies: a CUDA graph that reads it stays valid
            else:
                setattr(self, name, new)

    def remask_(self) -> None:
        """Sets the weights outside of the mask to exactly zero again."""
        mask_ops.apply_(self.weight.data, self.bits)

    def validate(self) -> None:
        mask = self.mask()
        if bool((self.weight[~mask] != 0).any()):
            raise ValueError("Expected weight to be zero outside of its mask. Got other values.")
        if not torch.equal(mask_ops.pack_bits(mask), self.bits):
            raise ValueError("Expected the unused bits of the mask to be zero. Got ones.")
        if int(torch.count_nonzero(mask)) != self._nnz:
            raise ValueError(f"Expected nnz to be {int(mask.sum())}. Got {self._nnz}.")
        index = self.index
        if index is not None:
            right = csr.index_from_mask(mask, self._nnz)
            for name, own, rebuilt in zip(CsrIndex._fields, index, right, strict=True):
                if not torch.equal(own, rebuilt):
                    raise ValueError(f"Expected {name} to follow from the mask. Got another index.")

    def _refuse_content(self, state_dict: Mapping[str, Any], prefix: str) -> str | None:
        bits, weight = state_dict[prefix + "bits"], state_dict[prefix + "weight"]
        if bits.shape != self.bits.shape or weight.shape != self.weight.shape:
            return (
                f"Expected {prefix}weight to have shape {self.shape}. Got {tuple(weight.shape)} "
                f"with {bits.numel()} bytes of mask."
            )
        return None

    def _prepare_load(self, state_dict: Mapping[str, Any], prefix: str) -> None:
        """The sizes never change."""

    def _finish_load(self) -> None:
        self._refresh()


FORMATS.add(MaskedFormat.name, MaskedFormat)
