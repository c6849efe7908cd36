"""16-bit activations and weights: sums of thousands of terms are float32's and rounded once."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sparsekern.nn import SparseConv2d, SparseLinear

FAN_IN = 6000
DTYPES = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}  # half a unit in the last place of 1


def check(got: Tensor, right: Tensor, terms: Tensor, unit: float) -> None:
    """Rounded once: half a unit of the result, and float32's error of a sum of ``terms``."""
    assert got.dtype in DTYPES
    error = (got.double() - right).abs()
    allowed = unit * 1.001 * right.abs() + 1e-5 * terms + 1e-7
    worst = int((error - allowed).argmax())
    assert bool((error <= allowed).all()), (error.flatten()[worst], allowed.flatten()[worst])


@pytest.mark.parametrize("format", ["csr", "bsr", "condensed", "masked"])
@pytest.mark.parametrize("batch", [1, 7, 70])
@pytest.mark.parametrize("dtype", DTYPES)
def test_linear(dtype: torch.dtype, batch: int, format: str) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.rand(32, FAN_IN, generator=generator) / 64  # all above zero: sums grow
    x = torch.rand(batch, FAN_IN, generator=generator).to(dtype).requires_grad_()
    dense = torch.nn.Linear(FAN_IN, 32, bias=False)
    dense.weight.data = weight
    mask = torch.ones(32, FAN_IN).bool()
    layer = SparseLinear.from_dense(dense, mask=mask, format=format).to(dtype)
    rounded = weight.to(dtype).double()
    y = layer(x)
    right = F.linear(x.detach().double(), rounded)
    check(y, right, right.abs(), DTYPES[dtype])
    grad = torch.rand(batch, 32, generator=generator).to(dtype)
    y.backward(grad)
    assert x.grad is not None
    dx = grad.double() @ rounded
    check(x.grad, dx, dx.abs(), DTYPES[dtype])
    stored = next(layer.parameters())
    assert stored.dtype == dtype
    assert stored.grad is not None
    dweight = grad.double().t() @ x.detach().double()
    got = SparseLinear.from_dense(dense, mask=torch.ones(32, FAN_IN).bool(), format=format).to(
        dtype
    )
    next(got.parameters()).data = stored.grad
    check(got.weight.detach(), dweight, dweight.abs(), DTYPES[dtype])


@pytest.mark.parametrize("last", [False, True], ids=["nchw", "channels_last"])
@pytest.mark.parametrize("format", ["csr", "bsr"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_conv2d(dtype: torch.dtype, format: str, last: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    dense = torch.nn.Conv2d(640, 16, 3, padding=1, bias=False)
    dense.weight.data = torch.rand(dense.weight.shape, generator=generator) / 64
    x = torch.rand(2, 640, 9, 8, generator=generator).to(dtype)
    if last:
        x = x.to(memory_format=torch.channels_last)
    x.requires_grad_()
    mask = torch.ones(dense.weight.shape).bool()
    layer = SparseConv2d.from_dense(dense, mask=mask, format=format).to(dtype)
    weight = dense.weight.detach().to(dtype).double()
    y = layer(x)
    right = F.conv2d(x.detach().double(), weight, padding=1)
    check(y, right, right.abs(), DTYPES[dtype])
    grad = torch.rand(y.shape, generator=generator).to(dtype)
    y.backward(grad)
    assert x.grad is not None
    dx = F.conv_transpose2d(grad.double(), weight, padding=1)
    check(x.grad, dx, dx.abs(), DTYPES[dtype])
