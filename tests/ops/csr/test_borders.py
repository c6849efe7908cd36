"""Sizes at the borders of 16-bit numbers, NaN and infinity: as torch's dense layers have them."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sparsekern.ops import csr

BORDER = (65535, 65536, 65537)


def few(rows: int, cols: int) -> Tensor:
    """A mask with entries at the first and last columns and rows, and some between."""
    generator = torch.Generator().manual_seed(0)
    mask = torch.zeros(rows, cols, dtype=torch.bool)
    at = torch.randint(rows * cols, (300,), generator=generator)
    mask.view(-1)[at] = True
    mask[0, 0] = mask[-1, -1] = mask[0, -1] = mask[-1, 0] = True
    return mask


def check(got: Tensor, right: Tensor) -> None:
    torch.testing.assert_close(got.double(), right, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("batch", [1, 5, 70])
@pytest.mark.parametrize("long", BORDER)
@pytest.mark.parametrize("wide", [True, False], ids=["columns", "rows"])
def test_linear_at_the_border(long: int, wide: bool, batch: int) -> None:
    mask = few(3, long) if wide else few(long, 3)
    rows, cols = mask.shape
    index = csr.index_from_mask(mask)
    values = torch.randn(index.nnz, requires_grad=True)
    bias, x = torch.randn(rows), torch.randn(batch, cols, requires_grad=True)
    y = csr.linear(x, values, index, bias)
    grad = torch.randn_like(y)
    gradients = torch.autograd.grad(y, (x, values), grad)
    weight = torch.zeros(rows, cols, dtype=torch.float64)
    weight[mask] = values.detach().double()
    weight.requires_grad_()
    again = x.detach().double().requires_grad_()
    right = F.linear(again, weight, bias.double())
    expected = torch.autograd.grad(right, (again, weight), grad.double())
    check(y, right)
    check(gradients[0], expected[0])
    check(gradients[1], expected[1][mask])


@pytest.mark.parametrize("long", BORDER)
def test_convolution_of_long_rows(long: int) -> None:
    """Offsets of pixels beyond 16 bits, within a row and from channel to channel."""
    mask = torch.tensor([[[[1, 0, 1]], [[0, 1, 1]]], [[[0, 0, 1]], [[1, 0, 0]]]]).bool()
    index = csr.index_from_mask(mask)
    values = torch.randn(index.nnz, requires_grad=True)
    x = torch.randn(1, 2, 1, long, requires_grad=True)
    y = csr.conv2d(x, values, index, None, kernel_size=(1, 3), padding=(0, 1))
    grad = torch.randn_like(y)
    gradients = torch.autograd.grad(y, (x, values), grad)
    weight = torch.zeros(mask.shape, dtype=torch.float64)
    weight[mask] = values.detach().double()
    weight.requires_grad_()
    again = x.detach().double().requires_grad_()
    right = F.conv2d(again, weight, padding=(0, 1))
    expected = torch.autograd.grad(right, (again, weight), grad.double())
    check(y, right)
    check(gradients[0], expected[0])
    # Sums of as many products of unit variance as pixels.
    check(gradients[1] / math.sqrt(long), expected[1][mask] / math.sqrt(long))


@pytest.mark.parametrize("batch", [1, 5, 70])
@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
def test_nan_and_infinity_travel_along_kept_weights(odd: float, batch: int) -> None:
    """Through every kept weight, as in dense; not through a dropped one, where dense multiplies by
    zero and gets NaN."""
    torch.manual_seed(0)
    mask = torch.rand(20, 30) < 0.3
    mask[:, 4], mask[3, 4] = False, True
    mask[:, 7] = False
    index = csr.index_from_mask(mask)
    values = torch.randn(index.nnz).abs() + 0.5
    x = torch.randn(batch, 30)
    x[0, 4], x[0, 7] = odd, odd
    values.requires_grad_()
    x.requires_grad_()
    y = csr.linear(x, values, index)
    ordinary = torch.ones_like(y, dtype=torch.bool)
    ordinary[0, 3] = False
    assert y[ordinary].isfinite().all()
    assert torch.equal(y[0, 3].isnan(), torch.tensor(math.isnan(odd)))
    assert math.isnan(odd) or y[0, 3].item() == odd
    grad = torch.zeros_like(y)
    grad[0, 5] = odd
    dx, dvalues = torch.autograd.grad(y, (x, values), grad)
    kept = mask[5]
    assert torch.equal(~dx[0].isfinite(), kept)
    assert (dx[1:] == 0).all()
    weight_grad = torch.zeros(mask.shape)
    weight_grad[mask] = dvalues
    assert not weight_grad[5][kept].isfinite().any()


def test_nan_in_a_value() -> None:
    mask = torch.eye(6, dtype=torch.bool)
    index = csr.index_from_mask(mask)
    values = torch.ones(6)
    values[2] = math.nan
    for batch in (1, 5, 70):
        y = csr.linear(torch.ones(batch, 6), values, index)
        assert torch.equal(y.isnan(), mask[2].expand(batch, 6))
