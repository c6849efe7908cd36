"""NaN and infinity travel along kept weights as in dense layers, and nowhere else.

Dense kernels differ in what they multiply by the zeros of a padded border, so where a weight or
a gradient is odd, ours may be odd in more places than the sums over real pixels: never in another
channel, and never in fewer.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sparsekern._extension import native
from sparsekern.ops import bsr, condensed, csr, mask, update

pytestmark = pytest.mark.skipif(not native.loaded, reason="plain torch multiplies dropped zeros")
ODD = (math.nan, math.inf, -math.inf)
BATCHES = (1, 5, 16, 33, 130)
BLOCKS = ((4, 4), (16, 16), (1, 16), (16, 1), (2, 8))


def check(got: Tensor, right: Tensor) -> None:
    """Equal, NaN at the same places and infinities of the same sign; bits of what is finite are
    another test's business."""
    scale = right[right.isfinite()].abs().max().item() if right.isfinite().any() else 1.0
    tolerance = 1e-4 * scale if got.dtype == torch.float32 else 2e-2 * scale
    torch.testing.assert_close(
        got.double(), right.double(), rtol=tolerance, atol=tolerance, equal_nan=True
    )


def check_within(got: Tensor, least: Tensor, most: Tensor) -> None:
    """Odd wherever ``least`` is, finite and equal to it wherever ``most`` is False."""
    odd = ~got.isfinite()
    assert odd[~least.isfinite()].all()
    assert not odd[~most].any()
    check(got.masked_fill(odd, 0), least.masked_fill(odd, 0))


def block_case(block: tuple[int, int]) -> tuple[Tensor, bsr.BsrIndex, Tensor]:
    """The mask of a few blocks (an empty row and an empty column of blocks), index and values."""
    kept = torch.tensor([[1, 0, 0, 1], [0, 0, 0, 0], [1, 1, 0, 0]], dtype=torch.bool)
    index = bsr.index_from_mask(kept)
    grid = kept.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)
    return grid, index, torch.randn(index.blocks, *block).abs() + 0.5


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("where", ["x", "unused", "value", "grad"])
def test_blocks(where: str, batch: int, block: tuple[int, int], odd: float) -> None:
    torch.manual_seed(0)
    kept, index, values = block_case(block)
    rows, cols = kept.shape
    x, grad = torch.randn(batch, cols), torch.randn(batch, rows)
    if where == "x":
        x[-1, 0] = odd
    elif where == "unused":
        x[0, 2 * block[1]] = odd
    elif where == "value":
        values[1, -1, 0] = odd
    else:
        grad[-1, -1] = odd
    weight = bsr.to_dense(values, index.crow, index.col, 4).double()
    x.requires_grad_()
    values.requires_grad_()
    y = bsr.linear(x, values, index)
    dx, dvalues = torch.autograd.grad(y, (x, values), grad)
    wide = x.detach().double()
    check(y, (wide[:, None] * weight).masked_fill(~kept, 0).sum(2))
    products = (grad.double()[:, :, None] * weight).masked_fill(~kept, 0)
    check(dx, products.sum(1))
    dense = (grad.double()[:, :, None] * wide[:, None]).sum(0)
    check(dvalues, bsr.gather(dense, index.crow, index.col, block))
    assert where != "unused" or (y.isfinite().all() and dvalues.isfinite().all())
    # Nothing odd is left in memory that is used again.
    plain = torch.ones(3, cols, requires_grad=True)
    values = torch.ones_like(values, requires_grad=True)
    y = bsr.linear(plain, values, index)
    for got in (y, *torch.autograd.grad(y, (plain, values), torch.ones_like(y))):
        assert got.isfinite().all()


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("batch", [1, 3, 7, 16, 20])
def test_constant_fan_in(batch: int, odd: float) -> None:
    kept = torch.zeros(90, 40, dtype=torch.bool)
    kept.scatter_(1, torch.rand(90, 40).argsort(1)[:, :7], True)
    col = kept.nonzero()[:, 1].view(-1, 7).int()
    values, x = torch.rand(col.numel()) + 0.5, torch.randn(batch, 40)
    x[-1, 2] = odd
    dense = torch.zeros(kept.shape).masked_scatter(kept, values)
    right = (x[:, None] * dense).masked_fill(~kept, 0).sum(2)
    check(condensed.linear(x, values, col, 40), right)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("odd", ODD)
def test_sixteen_bits(odd: float, dtype: torch.dtype) -> None:
    """Through widening and rounding."""
    kept, index, values = block_case((4, 4))
    x = torch.randn(20, 16)
    x[3, 1] = odd
    right = (x[:, None] * bsr.to_dense(values, index.crow, index.col, 4)).masked_fill(~kept, 0)
    check(bsr.linear(x.to(dtype), values, index), right.sum(2))
    flat = csr.index_from_mask(kept)
    ones = torch.ones(flat.nnz)
    check(csr.linear(x.to(dtype), ones, flat), x[:, None].masked_fill(~kept, 0).sum(2))


# (images, height, width, kernel, stride, padding, dilation, groups)
SHAPES = (
    (1, 7, 9, 3, 1, 1, 1, 1),
    (2, 7, 9, 3, 1, 0, 1, 2),
    (3, 8, 8, 3, 2, 1, 1, 1),
    (2, 12, 17, 3, 1, 2, 1, 2),
    (2, 9, 9, 1, 1, 0, 1, 1),
    (2, 16, 16, 3, 1, 1, 2, 1),
    (1, 5, 5, 5, 1, 2, 1, 1),
    (9, 4, 4, 3, 1, 1, 1, 1),
    (2, 11, 40, 3, 2, 1, 1, 1),
)
CHANNELS = 8


class Convolution:
    """A convolution of one of the shapes, and its sums over kept weights and real pixels."""

    def __init__(self, shape: tuple[int, ...], family: str) -> None:
        torch.manual_seed(0)
        self.images, self.height, self.width, k, s, p, d, self.groups = shape
        self.window = {"kernel_size": (k, k), "stride": (s, s)}
        self.window |= {"padding": (p, p), "dilation": (d, d)}
        inner = CHANNELS // self.groups
        blocks = torch.rand(CHANNELS // 4, inner // 4, k, k) < 0.6
        blocks[0, 0, 0, 0] = blocks[-1, -1, -1, -1] = True
        if family == "bsr":
            self.kept = blocks.repeat_interleave(4, 0).repeat_interleave(4, 1)
        else:
            self.kept = torch.rand(CHANNELS, inner, k, k) < 0.5
            self.kept[0, 0, 0, 0] = self.kept[-1, -1, -1, -1] = True
        self.family, self.weight = family, torch.randn(CHANNELS, inner, k, k).abs() + 0.5
        self.x = torch.randn(self.images, CHANNELS, self.height, self.width)
        span = d * (k - 1)
        sides = [(side + 2 * p - span - 1) // s + 1 for side in (self.height, self.width)]
        self.grad = torch.randn(self.images, CHANNELS, *sides)

    def run(self) -> tuple[Tensor, Tensor, Tensor]:
        """y, dx, and dvalues as a dense weight, zero where nothing is kept."""
        x = self.x.clone().requires_grad_()
        options: dict[str, Any] = {**self.window, "groups": self.groups}
        if self.family == "csr":
            index = csr.index_from_mask(self.kept)
            values = self.weight[self.kept].requires_grad_()
            y = csr.conv2d(x, values, index, None, **options)
        else:
            matrix, kept = bsr.as_matrix(self.weight), bsr.as_matrix(self.kept)
            blocks = bsr.index_from_mask(bsr.block_mask(kept, (4, 4)))
            values = bsr.gather(matrix, blocks.crow, blocks.col, (4, 4)).requires_grad_()
            y = bsr.conv2d(x, values, blocks, None, **options)
        dx, dvalues = torch.autograd.grad(y, (x, values), self.grad)
        if self.family == "csr":
            dweight = torch.zeros(self.weight.shape).masked_scatter(self.kept, dvalues)
        else:
            dense = bsr.to_dense(dvalues, blocks.crow, blocks.col, kept.shape[1] // 4)
            dweight = bsr.from_matrix(dense, tuple(self.weight.shape))
        return y.detach(), dx, dweight

    def sums(self) -> tuple[Tensor, Tensor, Tensor]:
        """The same in float64, of products of kept weights and real pixels alone."""
        unfold = {**self.window}
        patches = F.unfold(self.x.double(), **unfold)
        inside = F.unfold(torch.ones_like(self.x), **unfold).bool()
        taps = math.prod(self.window["kernel_size"])
        inner, outer = CHANNELS // self.groups, CHANNELS // self.groups
        y, dx, dweight = [], torch.zeros_like(patches), []
        flat_grad = self.grad.double().flatten(2)
        for group in range(self.groups):
            channels = slice(group * inner * taps, (group + 1) * inner * taps)
            outputs = slice(group * outer, (group + 1) * outer)
            weight = self.weight[outputs].double().flatten(1)[None, :, :, None]
            kept = self.kept[outputs].flatten(1)[None, :, :, None]
            part, real = patches[:, None, channels], inside[:, None, channels]
            grad = flat_grad[:, outputs, None]
            y.append((weight * part).masked_fill(~(kept & real), 0).sum(2))
            dx[:, channels] = (weight * grad).masked_fill(~(kept & real), 0).sum(1)
            product = (grad * part).masked_fill(~(kept & real), 0)
            dweight.append(product.sum((0, 3)))
        size = (self.height, self.width)
        return (
            torch.cat(y, 1).view(self.grad.shape),
            F.fold(dx, size, **unfold),
            torch.cat(dweight).view(self.weight.shape),
        )


@pytest.mark.parametrize("family", ["csr", "bsr"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("odd", [math.nan, math.inf])
@pytest.mark.parametrize("place", ["corner", "middle", "end"])
def test_convolutions(family: str, shape: tuple[int, ...], odd: float, place: str) -> None:
    case = Convolution(shape, family)
    at = {"corner": (0, 0, 0, 0), "middle": (0, 5, 2, 3), "end": (-1, -1, -1, -1)}[place]
    *_, channel, row, col = at

    pixels = case.x.clone()
    case.x[at] = odd
    y, dx, dweight = case.run()
    right = case.sums()
    check(y, right[0])
    check(dx, right[1])
    seen = torch.zeros_like(case.kept)
    group = channel % CHANNELS // (CHANNELS // case.groups)
    rows = slice(group * CHANNELS // case.groups, (group + 1) * CHANNELS // case.groups)
    seen[rows, channel % (CHANNELS // case.groups)] = True
    check_within(dweight, right[2], seen & case.kept)

    case.x = pixels
    case.grad[at[0], channel, row % case.grad.shape[2], col % case.grad.shape[3]] = odd
    y, dx, dweight = case.run()
    right = case.sums()
    check(y, right[0])
    check(dx, right[1])
    seen = torch.zeros_like(case.kept)
    seen[channel] = True
    check_within(dweight, right[2], seen & case.kept)


@pytest.mark.parametrize("family", ["csr", "bsr"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("odd", [math.nan, math.inf])
def test_a_value_of_a_convolution(family: str, shape: tuple[int, ...], odd: float) -> None:
    case = Convolution(shape, family)
    case.weight[-1, -1, -1, -1] = odd
    y, dx, dweight = case.run()
    right = case.sums()
    seen = torch.zeros_like(y, dtype=torch.bool)
    seen[:, -1] = True
    check_within(y, right[0], seen)
    seen = torch.zeros_like(dx, dtype=torch.bool)
    seen[:, -1] = True
    check_within(dx, right[1], seen)
    check(dweight, right[2])


@pytest.mark.parametrize("odd", ODD)
def test_masked_layers(odd: float) -> None:
    """Outputs are dense ones; the gradient of a dropped weight is zero whatever happens."""
    torch.manual_seed(0)
    kept = torch.rand(6, 9) < 0.5
    bits = mask.pack_bits(kept)
    weight = (torch.randn(6, 9) * kept).requires_grad_()
    x = torch.randn(5, 9)
    x[2, 4] = odd
    y = mask.linear(x, weight, bits)
    check(y, F.linear(x, weight.detach()))
    grad = torch.ones_like(y)
    grad[1, 3] = odd
    (dweight,) = torch.autograd.grad(y, weight, grad)
    check(dweight, (grad.t() @ x).masked_fill(~kept, 0))

    filters = kept[:, :, None, None].expand(6, 9, 3, 3).contiguous()
    weight = (torch.randn(6, 9, 3, 3) * filters).requires_grad_()
    images = torch.randn(2, 9, 5, 5)
    images[0, 4, 2, 2] = odd
    y = mask.conv2d(images, weight, mask.pack_bits(filters), padding=(1, 1))
    torch.testing.assert_close(y, F.conv2d(images, weight, padding=1), equal_nan=True)
    (dweight,) = torch.autograd.grad(y, weight, torch.full_like(y, odd))
    assert (dweight[~filters] == 0).all()
    assert not dweight[filters].isfinite().any()


def test_masking_clears_nan() -> None:
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        x = torch.tensor([math.nan, math.nan, math.inf, -math.inf, 1.0] * 30, dtype=dtype)
        kept = torch.arange(150) % 5 < 1
        mask.apply_(x, mask.pack_bits(kept))
        assert x[kept].isnan().all()
        assert (x[~kept] == 0).all()


@pytest.mark.parametrize("numel", [7, 100_000])
def test_order_of_scores(numel: int) -> None:
    """NaN below minus infinity, whichever its sign and payload; of several, the first."""
    scores = torch.full((numel,), -math.inf)
    negative = torch.tensor([-1], dtype=torch.int32).view(torch.float32)
    scores[:3] = torch.tensor([math.nan, math.inf, 0.0])
    scores[3:5] = negative
    finite_first = [1, 2, *range(5, numel), 0, 3, 4]
    for k in (1, 2, numel - 3, numel - 2, numel - 1, numel):
        kept = mask.topk(scores, k).nonzero().flatten()
        assert kept.tolist() == sorted(finite_first[:k])


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("zero_masked", [False, True])
def test_an_odd_gradient_of_a_masked_weight(odd: float, zero_masked: bool) -> None:
    """Changes nothing: not what is kept, not the state, not the norm."""
    torch.manual_seed(0)
    kept = torch.rand(300) < 0.5
    bits = [mask.pack_bits(kept)]
    start, plain = torch.randn(300), torch.randn(300)
    broken = plain.masked_fill(~kept, odd)
    results = []
    for grad in (plain, broken):
        p, q, m, v, b = start.clone(), start.clone(), *torch.zeros(3, 300)
        step = [torch.ones(())]
        factor = torch.clamp(1 / update.masked_norm([grad], bits), max=1.0)
        options = {"weight_decay": 0.1, "zero_masked": zero_masked}
        adamw = {"lr": 0.1, "betas": (0.9, 0.99), "eps": 1e-8, **options}
        update.masked_adamw_([p], [grad], [m], [v], step, bits, factor, **adamw)
        update.masked_sgd_([q], [grad], [b], [False], bits, factor, lr=0.1, momentum=0.9, **options)
        results.append((factor, p, q, m, v, b))
    for first, second in zip(*results, strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("odd", ODD)
def test_an_odd_gradient_of_a_kept_weight(odd: float) -> None:
    """Stays with its weight, which becomes odd as under torch's optimiser."""
    kept = torch.arange(200) % 3 > 0
    grad = torch.ones(200)
    grad[100] = odd
    p, b = torch.ones(200), torch.zeros(200)
    update.masked_sgd_([p], [grad], [b], [False], [mask.pack_bits(kept)], lr=0.1, momentum=0.9)
    right = torch.ones(200, requires_grad=True)
    right.grad = grad.masked_fill(~kept, 0)
    torch.optim.SGD([right], lr=0.1, momentum=0.9).step()
    check(p, right.detach())


@pytest.mark.parametrize("numel", [3, 64, 5000, 200_000])
@pytest.mark.parametrize("odd", [*ODD, 1e30])
def test_norms(numel: int, odd: float) -> None:
    """Infinity stays infinity, also where the square of a float overflows."""
    grad = torch.ones(numel)
    everything = torch.empty(0, dtype=torch.uint8)
    for place in (0, numel // 2, numel - 1):
        grad.fill_(1.0)
        grad[place] = odd
        right = torch.nn.utils.get_total_norm([grad])
        assert torch.equal(update.masked_norm([grad], [everything]).isnan(), right.isnan())
        assert torch.equal(update.masked_norm([grad], [everything]).isinf(), right.isinf())
    grad.fill_(odd)
    norm = update.masked_norm([grad, torch.ones(5)], [everything, everything])
    assert norm.isnan() if math.isnan(odd) else norm.isinf()
