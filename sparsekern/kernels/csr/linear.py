"""``y = activation(x W^T + bias)`` and its gradients, ``W`` in compressed rows.

Formula: y and dx are products of compressed rows with a panel (spmm.py), of W with x and of the
  transposed W with the gradient; dvalues is a sampled product of both panels (sddmm.py).
Thread mapping, tile, accumulation, alignment: of those kernels; panels are made by batch_panel.py.
Contract: sparsekern/ops/csr/linear.py.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from sparsekern.kernels.csr.batch_panel import panel_of_rows
from sparsekern.kernels.csr.sddmm import row_sums, sddmm
from sparsekern.kernels.csr.spmm import Outputs, Rows, spmm


def _as_rows(x: Tensor) -> Tensor:
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


def linear(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    probe: Tensor | None,
    *index: Tensor,
    activation: str = "none",
) -> Tensor:
    """Launches ``csr_linear``; the probe is zero and only asks for a gradient."""
    crow, col = index[0].contiguous(), index[1].contiguous()
    bias = None if bias is None else bias.contiguous()
    rows, flat = crow.numel() - 1, _as_rows(x)
    y = x.new_empty(*x.shape[:-1], rows)
    if y.numel() > 0:
        out = Outputs(y, rows, flat.shape[0])
        spmm(panel_of_rows(flat), Rows(crow, col, values.contiguous()), bias, out, activation)
    return y


def linear_backward(
    grad: Tensor, x: Tensor, values: Tensor, y: Tensor | None, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Launches ``csr_linear_backward``."""
    *index, mask = rest
    crow, col, _, crow_t, col_t, perm, _ = (tensor.contiguous() for tensor in index)
    flat_x, gate = _as_rows(x), None if y is None else _as_rows(y)
    panel = panel_of_rows(_as_rows(grad), gate)
    values = values.contiguous()
    (batch, cols), rows = flat_x.shape, crow.numel() - 1
    dx, dvalues, dbias = x.new_empty(0), values.new_empty(0), values.new_empty(0)
    if mask[0]:
        dx = x.new_empty(x.shape)
        if dx.numel() > 0:
            spmm(panel, Rows(crow_t, col_t, values, perm), None, Outputs(dx, cols, batch))
    if mask[1]:
        dvalues = sddmm(panel, panel_of_rows(flat_x), Rows(crow, col, values), batch)
    if mask[2]:
        dbias = row_sums(panel, rows, batch, values)
    return dx, dvalues, dbias
