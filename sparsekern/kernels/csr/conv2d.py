"""``y[n, o] = activation(bias[o] + sum_e values[e] x[n, c_e] moved by e's tap)`` and its gradients.

Formula: y is the product of compressed rows with a panel of padded images (spmm.py), each entry
  read at its tap; dx is that of the transposed weight with a panel of gradients that stride and
  padding have spread apart (so a stride s costs s[0] s[1] times what it must), its taps turned
  round; dvalues is a sampled product of both panels (sddmm.py). What a value that is not finite
  multiplies there includes padding: see the op.
Thread mapping, tile, accumulation, alignment: of those kernels; panels are made by batch_panel.py.
Contract: sparsekern/ops/csr/conv2d.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sparsekern.kernels.csr.batch_panel import (
    Pair,
    Panel,
    entry_offsets,
    panel_of_images,
    pixel_places,
)
from sparsekern.kernels.csr.sddmm import row_sums, sddmm
from sparsekern.kernels.csr.spmm import Outputs, Rows, split_by_group, spmm


@dataclass(frozen=True)
class Geometry:
    """One convolution's sizes; pairs are of height and width."""

    count: int
    rows: int
    channels: int  # of one group
    size_in: Pair
    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int

    @property
    def spans(self) -> Pair:
        """How far a kernel's last tap is from its first."""
        return self._pair(lambda i: self.dilation[i] * (self.kernel[i] - 1))

    @property
    def size_out(self) -> Pair:
        return self._pair(
            lambda i: (
                (self.size_in[i] + 2 * self.padding[i] - self.spans[i] - 1) // self.stride[i] + 1
            )
        )

    @property
    def size_read(self) -> Pair:
        """Of a padded image, what is read."""
        return self._pair(lambda i: (self.size_out[i] - 1) * self.stride[i] + self.spans[i] + 1)

    @property
    def low(self) -> Pair:
        """Zeros before the first gradient, where dx is taken."""
        return self._pair(lambda i: max(0, self.spans[i] - self.padding[i]))

    @property
    def size_spread(self) -> Pair:
        """Of the gradients that stride and padding have spread apart."""
        return self._pair(lambda i: self.size_in[i] + self.low[i] + self.padding[i])

    @staticmethod
    def _pair(function: Any) -> Pair:
        return function(0), function(1)


def _geometry(
    x: Tensor,
    crow: Tensor,
    crow_t: Tensor,
    kernel_size: Any,
    stride: Any = (1, 1),
    padding: Any = (0, 0),
    dilation: Any = (1, 1),
    groups: int = 1,
) -> Geometry:
    return Geometry(
        count=x.shape[0],
        rows=crow.numel() - 1,
        channels=crow_t.numel() - 1,
        size_in=(x.shape[2], x.shape[3]),
        kernel=(kernel_size[0], kernel_size[1]),
        stride=(stride[0], stride[1]),
        padding=(padding[0], padding[1]),
        dilation=(dilation[0], dilation[1]),
        groups=groups,
    )


def _is_last(x: Tensor) -> bool:
    return not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)


def _images_like(x: Tensor, channels: int, size: Pair) -> Tensor:
    """Uninitialised images in the memory format of ``x``."""
    order = torch.channels_last if _is_last(x) else torch.contiguous_format
    shape = (x.shape[0], channels, *size)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=order)


def _rows_of_weight(panel: Panel, values: Tensor, crow: Tensor, col: Tensor, g: Geometry) -> Rows:
    """The weight's rows, over a panel of padded images."""
    steps = (g.dilation[0] * panel.row, g.dilation[1])
    offset = entry_offsets(col, g.kernel, panel, 0, steps)
    group = max(1, g.rows // g.groups)
    return Rows(crow, col, values, None, offset, 1, group, g.channels)


def conv2d(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    probe: Tensor | None,
    *index: Tensor,
    activation: str = "none",
    **geometry: Any,
) -> Tensor:
    """Launches ``csr_conv2d``; the probe is zero and only asks for a gradient."""
    crow, col, crow_t = (tensor.contiguous() for tensor in index[:3])
    bias = None if bias is None else bias.contiguous()
    g = _geometry(x, crow, crow_t, **geometry)
    y = _images_like(x, g.rows, g.size_out)
    if y.numel() > 0:
        panel = panel_of_images(x, g.size_read, g.padding)
        rows = _rows_of_weight(panel, values.contiguous(), crow, col, g)
        spmm(panel, rows, bias, _outputs(y, g.stride, _is_last(x)), activation)
    return y


def _outputs(y: Tensor, stride: Pair, last: bool) -> Outputs:
    count, channels, height, width = y.shape
    pixels = height * width
    return Outputs(y, channels, count * pixels, pixels, width, stride, last)


def conv2d_backward(
    grad: Tensor, x: Tensor, values: Tensor, *rest: Any, **geometry: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Launches ``csr_conv2d_backward``."""
    *index, mask = rest
    crow, col, crow_t, col_t, perm = (tensor.contiguous() for tensor in index)
    values = values.contiguous()
    g = _geometry(x, crow, crow_t, **geometry)
    dx, dvalues, dbias = x.new_empty(0), values.new_empty(0), values.new_empty(0)
    if mask[0]:
        dx = _images_like(x, x.shape[1], g.size_in)
        if dx.numel() > 0:
            _input_gradient(grad, values, (crow_t, col_t, perm), dx, g)
    if mask[1] or mask[2]:
        positions = g.count * g.size_out[0] * g.size_out[1]
        flat = panel_of_images(grad, g.size_out, packed=True)
        if mask[1]:
            panel = panel_of_images(x, g.size_read, g.padding)
            rows = _rows_of_weight(panel, values, crow, col, g)
            places = pixel_places(g.count, g.size_out, panel, g.stride)
            dvalues = sddmm(flat, panel, rows, positions, places)
        if mask[2]:
            dbias = row_sums(flat, g.rows, positions, values)
    return dx, dvalues, dbias


def _input_gradient(
    grad: Tensor, values: Tensor, index: tuple[Tensor, ...], dx: Tensor, g: Geometry
) -> None:
    """Each channel gathers what its entries sent to, taps turned round."""
    crow_t, col_t, perm = index
    panel = panel_of_images(grad, g.size_spread, g.low, g.stride)
    origin = (g.low[0] + g.padding[0]) * panel.row + g.low[1] + g.padding[1]
    steps = (-g.dilation[0] * panel.row, -g.dilation[1])
    offset = entry_offsets(col_t, g.kernel, panel, origin, steps)
    begin, after = crow_t, 1
    if g.groups > 1:
        columns = g.rows // g.groups * g.kernel[0] * g.kernel[1]
        begin = split_by_group(crow_t, col_t, g.channels, g.groups, columns)
        after = g.channels
    rows = Rows(begin, col_t, values, perm, offset, after)
    spmm(panel, rows, None, _outputs(dx, (1, 1), _is_last(dx)))
