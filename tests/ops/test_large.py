"""Tensors of more than 2^31 elements, at the border of 32-bit offsets.

Inputs are zeros that take no memory where nothing is written (`lazy`); the few outputs that are as
large are `slow`, and skipped where too little memory is free.
"""

from __future__ import annotations

import functools
import itertools
import math
import mmap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sparsekern._extension import native
from sparsekern.ops import OPS, bsr, csr, mask, update

BORDER = 2**31
MAP_NORESERVE = 0x4000  # Linux; what is never written needs no memory behind it
pytestmark = pytest.mark.skipif(
    not native.loaded or not Path("/proc/meminfo").exists(), reason="no native library, or no Linux"
)


def lazy(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Zeros, of which only pages that are written take memory."""
    size = math.prod(shape) * dtype.itemsize
    try:
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE)
    except OSError:
        pytest.skip("this system hands out no more addresses than it has memory")
    return torch.frombuffer(memory, dtype=dtype).view(shape)


def numbers(*shape: int) -> Tensor:
    """Small whole numbers, whose sums of products are exact in any order."""
    return torch.randint(-4, 5, shape).float()


def assert_same(got: Tensor, right: Tensor) -> None:
    torch.testing.assert_close(got, right, rtol=0, atol=0)


def gigabytes_of(kind: str) -> float:
    """``MemTotal`` or ``MemAvailable`` in GB."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(kind)) / 2**20


def need_memory(gigabytes: int) -> None:
    if gigabytes_of("MemAvailable") < gigabytes:
        pytest.skip(f"{gigabytes} GB of memory are not free")


def refuses_memory() -> bool:
    """Whether asking for 256 GB fails at once, and not when they are written to."""
    policy = Path("/proc/sys/vm/overcommit_memory").read_text().strip()
    return policy != "1" and gigabytes_of("MemTotal") < 200


# Layers

LAYERS = ("csr", "bsr")
BLOCK = (4, 8)


def linear(family: str, rows: int, cols: int) -> tuple[Callable[..., Tensor], Tensor, Tensor]:
    """A layer as a function of x and its values; its values; its dense weight."""
    kept = torch.rand(rows // BLOCK[0], cols // BLOCK[1]) < 0.5
    kept[-1, -1] = kept[0, 0] = True
    if family == "bsr":
        blocks = bsr.index_from_mask(kept)
        values = numbers(blocks.blocks, *BLOCK)
        dense = bsr.to_dense(values, blocks.crow, blocks.col, kept.shape[1])
        return functools.partial(bsr.linear, index=blocks), values, dense
    index = csr.index_from_mask(kept.repeat_interleave(BLOCK[0], 0).repeat_interleave(BLOCK[1], 1))
    values = numbers(index.nnz)
    dense = csr.to_dense(values, index.crow, index.col, cols)
    return functools.partial(csr.linear, index=index), values, dense


@pytest.mark.parametrize("family", LAYERS)
@pytest.mark.parametrize("batch", [2, 5, 70])
def test_rows_far_apart(family: str, batch: int) -> None:
    """Strides from row to row that reach beyond the border, in x and in the gradient."""
    run, values, _ = linear(family, 12, 24)
    stride = BORDER // (batch - 1) + 5
    x = lazy(batch * stride).as_strided((batch, 24), (stride, 1))
    grad = lazy(batch * stride).as_strided((batch, 12), (stride, 1))
    x.copy_(numbers(batch, 24))
    grad.copy_(numbers(batch, 12))
    results = []
    for own_x, own_grad in ((x, grad), (x.clone(), grad.clone())):
        leaf, weights = own_x.detach().requires_grad_(), values.clone().requires_grad_()
        y = run(leaf, weights)
        results.append((y.detach(), *torch.autograd.grad(y, (leaf, weights), own_grad)))
    assert results[0][0].abs().sum() > 0
    for far, near in zip(*results, strict=True):
        assert torch.equal(far, near)


@pytest.mark.slow
@pytest.mark.parametrize("family", LAYERS)
def test_inputs_of_a_linear_layer(family: str) -> None:
    """batch * features beyond the border; only the first and the last rows are not zero."""
    run, values, dense = linear(family, 4, 1024)
    batch = BORDER // 1024 + 7
    x, grad = lazy(batch, 1024), torch.zeros(batch, 4)
    for rows in (slice(0, 3), slice(-5, None)):
        x[rows], grad[rows] = numbers(*x[rows].shape), numbers(*grad[rows].shape)
    weights = values.clone().requires_grad_()
    y = run(x, weights)
    (dvalues,) = torch.autograd.grad(y, weights, grad)
    ends = torch.cat([x[:3], x[-5:]])
    assert_same(torch.cat([y[:3], y[-5:]]).detach(), ends @ dense.t())
    assert (y[3:-5] == 0).all()
    few = values.clone().requires_grad_()
    (right,) = torch.autograd.grad(run(ends, few), few, torch.cat([grad[:3], grad[-5:]]))
    assert_same(dvalues, right)


def _tall(family: str, rows: int) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Values and index of a matrix [rows, 8] with its last and first entries and two between."""
    height, width = BLOCK if family == "bsr" else (1, 1)
    rows, cols = rows // height, 8 // width
    places = torch.tensor([0, rows // 2, rows // 2 + 1, rows - 1])
    counts = torch.zeros(rows + 1, dtype=torch.int32)
    counts[places + 1] = 1
    crow = counts.cumsum(0, dtype=torch.int32)
    col = torch.tensor([0, cols - 1, 0, cols - 1], dtype=torch.int32)
    if family == "bsr":
        return 2 * numbers(4, *BLOCK) + 1, tuple(bsr.build_index(crow, col, cols))
    return 2 * numbers(4) + 1, tuple(csr.build_index(crow, col, cols))


@pytest.mark.slow
@pytest.mark.parametrize("family", LAYERS)
def test_outputs_of_a_linear_layer(family: str) -> None:
    """batch * rows beyond the border, in bfloat16: y, and dx by the same matrix transposed."""
    need_memory(12)
    batch, rows = 70, 2**25
    values, index = _tall(family, rows)
    size = values[0].numel()
    # Each entry or block alone: row, column, values.
    parts = [
        (int(torch.searchsorted(index[0], j, right=True)) - 1, int(index[1][j])) for j in range(4)
    ]
    height, width = BLOCK if family == "bsr" else (1, 1)
    x = torch.randint(-4, 5, (batch, 8)).bfloat16()
    values = values.sign()  # sums are exact in bfloat16
    y = OPS[f"{family}_linear"].overload(x, values, None, None, *index)
    assert y.numel() > BORDER
    for j, (row, col) in enumerate(parts):
        got = y[:, row * height : (row + 1) * height]
        part = x[:, col * width : (col + 1) * width]
        assert torch.equal(got, part @ values[j].view(height, width).bfloat16().t())
    assert torch.count_nonzero(y[0]) <= 4 * size
    assert torch.count_nonzero(y[-1]) <= 4 * size
    del y, got

    # The transposed matrix [8, rows]: its dx is as large. x is not looked at.
    crow, col, *rest = index
    if family == "csr":
        starts, crow_t, col_t, perm, starts_t = rest
        flipped = (crow_t, col_t, starts_t, crow, col, perm.argsort().int(), starts)
    else:
        crow_t, col_t, perm = rest
        flipped = (crow_t, col_t, crow, col, perm.argsort().int())
    blocks = values.transpose(-1, -2)[perm.long()] if family == "bsr" else values[perm.long()]
    ignored = lazy(batch, rows, dtype=torch.bfloat16)
    backward = OPS[f"{family}_linear_backward"].overload
    y = () if family == "bsr" else (None,)
    dx, *_ = backward(x, ignored, blocks.contiguous(), *y, *flipped, [True, False, False])
    assert dx.numel() > BORDER
    for j, (row, col) in enumerate(parts):
        got = dx[:, row * height : (row + 1) * height]
        part = x[:, col * width : (col + 1) * width]
        assert torch.equal(got, part @ values[j].view(height, width).bfloat16().t())


def _one_row(cols: int) -> tuple[Tensor, ...]:
    """The index of one row with entries at the ends; what forward does not follow is lazy."""
    col = torch.tensor([0, 1, cols // 2, cols - 2, cols - 1], dtype=torch.int32)
    crow = torch.tensor([0, 5], dtype=torch.int32)
    starts = csr.panel_starts(crow, col, cols)
    crow_t = lazy(cols + 1, dtype=torch.int32)
    return crow, col, starts, crow_t, col, col, starts


@pytest.mark.parametrize("cols", [2**30, BORDER - 1])
def test_one_row_of_many_columns(cols: int) -> None:
    """A batch of one gathers; larger ones would pack all of x."""
    index = _one_row(cols)
    x = lazy(1, cols)
    values = torch.tensor([1.0, 10, 100, 1000, 10000])
    x[0, index[1].long()] = torch.tensor([1.0, 2, 3, 4, 5])
    forward = OPS["csr_linear"].overload
    assert forward(x, values, None, None, *index).item() == 54321
    for batch in (3, 70) if refuses_memory() else ():
        many = lazy(batch, cols)
        with pytest.raises(RuntimeError, match=r"Expected \d+ bytes of memory for packed activa"):
            forward(many, values, None, None, *index)
        del many


def test_more_columns_than_an_index_holds() -> None:
    col = torch.tensor([0, BORDER - 1], dtype=torch.int32)
    crow = torch.tensor([0, 2], dtype=torch.int32)
    for build in (csr.panel_starts, csr.transpose):
        with pytest.raises(ValueError, match="Expected cols to be at least 0 and below 2"):
            build(crow, col, BORDER)


@pytest.mark.parametrize("family", LAYERS)
def test_more_entries_than_an_index_holds(family: str) -> None:
    with pytest.raises(ValueError, match="Expected nnz to be at least 0 and below 2"):
        csr.from_mask(torch.ones(1, dtype=torch.bool).expand(2**16, 2**16), 2**32)
    crow = torch.tensor([0, 5], dtype=torch.int32)
    col = lazy(BORDER + 1, dtype=torch.int32)
    for build in (csr.panel_starts, csr.transpose):
        with pytest.raises(RuntimeError, match="Expected crow to run from 0 to 2147483649"):
            build(crow, col, 4)
    block = (1, 1) if family == "bsr" else ()
    values, x = lazy(BORDER + 1, *block), torch.ones(70, 4)
    crow_t = torch.zeros(5, dtype=torch.int32)
    starts = csr.panel_starts(torch.tensor([0, 0], dtype=torch.int32), crow[:0], 4)
    index = (crow, col, crow_t, col, col)
    if family == "csr":
        index = (crow, col, starts, crow_t, col, col, starts)
    with pytest.raises(RuntimeError, match=r"^Expected [^.]*\. Got "):
        OPS[f"{family}_linear"].overload(x, values, None, None, *index)
    y = () if family == "bsr" else (None,)
    with pytest.raises(RuntimeError, match=r"^Expected [^.]*\. Got "):
        OPS[f"{family}_linear_backward"].overload(x[:, :1], x, values, *y, *index, [True] * 3)


def test_moves_of_blocks_with_too_many_weights() -> None:
    positions = torch.zeros(1, dtype=torch.int32).expand(BORDER // 1024)
    with pytest.raises(ValueError, match="Expected fewer than 2\\^31 weights in blocks that ch"):
        bsr.element_positions(positions, (32, 32))


# Convolutions


def convolution(family: str, channels: int, out: int) -> tuple[Any, Tensor, Tensor]:
    """A 3 x 3 convolution as a function of x, its values and options; values; dense weight."""
    kept = torch.rand(out // 4, channels // 4, 3, 3) < 0.6
    kept[0, 0, 0, 0] = kept[-1, -1, -1, -1] = True
    whole = kept.repeat_interleave(4, 0).repeat_interleave(4, 1)
    weight = numbers(*whole.shape) * whole
    if family == "csr":
        index = csr.index_from_mask(whole)
        run = functools.partial(csr.conv2d, index=index, kernel_size=(3, 3))
        return run, weight[whole], weight
    blocks = bsr.index_from_mask(bsr.block_mask(bsr.as_matrix(whole), (4, 4)))
    run = functools.partial(bsr.conv2d, index=blocks, kernel_size=(3, 3))
    return run, bsr.gather(bsr.as_matrix(weight), blocks.crow, blocks.col, (4, 4)), weight


@pytest.mark.slow
@pytest.mark.parametrize("family", LAYERS)
def test_many_images(family: str) -> None:
    """Images beyond the border; only the first and the last ones are not zero."""
    run, values, weight = convolution(family, 8, 4)
    images = BORDER // (8 * 16 * 128) + 5
    x = lazy(images, 8, 16, 128)
    for part in (slice(0, 2), slice(-7, None)):
        x[part] = numbers(*x[part].shape)
    options = {"stride": (8, 8), "padding": (1, 1)}
    weights = values.clone().requires_grad_()
    y = run(x, weights, **options)
    grad = torch.zeros_like(y)
    grad[:2], grad[-7:] = numbers(*y[:2].shape), numbers(*y[-7:].shape)
    (dvalues,) = torch.autograd.grad(y, weights, grad)
    ends = torch.cat([x[:2], x[-7:]])
    right = F.conv2d(ends, weight, **options)
    assert_same(torch.cat([y[:2], y[-7:]]).detach(), right)
    assert (y[2:-7] == 0).all()
    few = values.clone().requires_grad_()
    near = torch.autograd.grad(run(ends, few, **options), few, torch.cat([grad[:2], grad[-7:]]))
    assert_same(dvalues, near[0])


@pytest.mark.slow
def test_one_large_image() -> None:
    """Rows of a plane beyond the border; blocks, which pad whole images, refuse it."""
    run, values, weight = convolution("csr", 4, 4)
    height, width = 2**15 + 3, 2**14 + 1  # of four channels
    x = lazy(1, 4, height, width)
    x[..., -70:, -70:], x[..., :70, :70] = numbers(2, 4, 70, 70)
    options = {"stride": (64, 64)}
    weights = values.clone().requires_grad_()
    y = run(x, weights, **options)
    (dvalues,) = torch.autograd.grad(y, weights, torch.ones_like(y))
    windows = []
    for i, j in [*itertools.product((0, 1), repeat=2), *itertools.product((-2, -1), repeat=2)]:
        top, left = (64 * (at % size) for at, size in zip((i, j), y.shape[2:], strict=True))
        window = x[:, :, top : top + 3, left : left + 3]
        windows.append(window)
        right = F.conv2d(window, weight)[0, :, 0, 0]
        assert_same(y[0, :, i, j].detach(), right)
    assert sum(window.abs().sum() for window in windows) > 0
    assert torch.count_nonzero(y) <= 4 * 8
    few = values.clone().requires_grad_()
    near = run(torch.cat(windows), few)
    (right,) = torch.autograd.grad(near, few, torch.ones_like(near))
    assert_same(dvalues, right)
    refusing, blocks, _ = convolution("bsr", 4, 4)
    with pytest.raises(RuntimeError, match="Expected an image of less than 2\\^31 elements once"):
        refusing(lazy(1, 4, height, width + 200), blocks, padding=(1, 1))


def test_taps_far_apart() -> None:
    """A dilation beyond the border."""
    index = csr.index_from_mask(torch.ones(1, 1, 1, 2, dtype=torch.bool))
    x = lazy(1, 1, 1, BORDER + 20)
    x[..., :10], x[..., -10:] = torch.arange(10.0), torch.arange(10.0) * 100
    values = torch.tensor([1.0, 2.0])
    options = {"kernel_size": (1, 2), "dilation": (1, BORDER + 10)}
    y = csr.conv2d(x, values, index, None, **options)
    assert y.flatten().tolist() == [201.0 * i for i in range(10)]


@pytest.mark.slow
def test_outputs_of_a_convolution() -> None:
    """In channels_last and bfloat16, which is written as it is."""
    need_memory(12)
    index = csr.index_from_mask(torch.eye(64, 4, dtype=torch.bool)[:, :, None, None])
    values = torch.tensor([1.0, 2, 3, 4])
    images = BORDER // (64 * 256) + 3
    x = lazy(images, 16, 16, 4, dtype=torch.bfloat16).permute(0, 3, 1, 2)
    x[-1] = x[0] = torch.arange(4.0)[:, None, None]
    y = csr.conv2d(x, values, index, None, kernel_size=(1, 1))
    assert y.numel() > BORDER
    assert y.dtype == torch.bfloat16
    right = torch.zeros(64)
    right[:4] = torch.tensor([0.0, 2, 6, 12])
    for image in (0, -1):
        assert torch.equal(y[image].float(), right[:, None, None].expand(64, 16, 16))
    assert torch.count_nonzero(y[images // 2]) == 0


# Masks, indices and optimisers


@pytest.mark.slow
def test_scores() -> None:
    """Few candidates: whatever else ties with the threshold would be listed, 8 bytes a score."""
    scores = lazy(BORDER + 100)
    places = [5, BORDER - 1, BORDER, BORDER + 98, BORDER + 99]
    scores[places] = torch.tensor([4.0, 3, 2, 1, 5])
    candidates = [0, 1, *places[:-1]]
    among = lazy((BORDER + 100 + 7) // 8, dtype=torch.uint8)
    for place in candidates:
        among[place // 8] |= 1 << (place % 8)
    for k, kept in ((2, places[:2]), (4, places[:4]), (5, [0, *places[:4]])):
        bits = mask.topk_bits(scores, k, among)
        assert mask.count(bits) == k
        for place in kept:
            assert bits[place // 8] >> (place % 8) & 1


@pytest.mark.slow
def test_packed_masks() -> None:
    flags = lazy(BORDER + 13, dtype=torch.bool)
    places = [3, BORDER - 1, BORDER, BORDER + 12]
    flags[places] = True
    bits = mask.pack_bits(flags)
    assert mask.count(bits) == mask.count(flags) == 4
    for place in places:
        assert bits[place // 8] >> (place % 8) & 1
    bits ^= 255
    x = lazy(BORDER + 13, dtype=torch.bfloat16)
    x[places] = x[[p - 1 for p in places if p != BORDER]] = 7.0
    mask.apply_(x, bits)
    assert (x[places] == 0).all()
    assert (x[[2, BORDER - 2, BORDER + 11]] == 7).all()


@pytest.mark.slow
def test_unpacked_masks() -> None:
    need_memory(6)
    bits = lazy((BORDER + 13 + 7) // 8, dtype=torch.uint8)
    bits[-1], bits[BORDER // 8], bits[0] = 0b1000, 0b1, 0b10
    flags = mask.unpack_bits(bits, (BORDER + 13,))
    expected = [1, BORDER, (len(bits) - 1) * 8 + 3]
    assert flags[expected].all()
    assert torch.count_nonzero(flags) == 3


def test_indices_of_a_large_mask() -> None:
    rows, cols = 2**12 + 3, 2**19 + 1
    kept = lazy(rows, cols, dtype=torch.bool)
    places = [(0, 0), (0, 9), (17, 5), (rows - 1, 0), (rows - 1, cols - 1)]
    for row, col in places:
        kept[row, col] = True
    index = csr.index_from_mask(kept)
    assert index.crow[[0, 1, 17, 18, -2, -1]].tolist() == [0, 2, 2, 3, 3, 5]
    assert index.col.tolist() == [col for _, col in places]
    assert index.perm.tolist() == [0, 3, 2, 1, 4]
    kept[rows - 1, 0], kept[rows - 1, 7] = False, True
    rebuilt = csr.CsrIndex(*[tensor.clone() for tensor in index])
    assert csr.rebuild_(rebuilt, kept, (rows, cols)).tolist() == [0, 1, 2, -1, 4]
    for own, right in zip(rebuilt, csr.index_from_mask(kept), strict=True):
        assert torch.equal(own, right)


def test_gathering_from_a_large_matrix() -> None:
    rows, cols = 5, 2**29 + 3
    dense = lazy(rows, cols)
    dense[rows - 1, cols - 1], dense[rows - 1, 0], dense[0, 1] = 1.0, 2.0, 3.0
    crow = torch.tensor([0, 1, 1, 1, 1, 3], dtype=torch.int32)
    col = torch.tensor([1, 0, cols - 1], dtype=torch.int32)
    assert csr.gather(dense, crow, col).tolist() == [3, 2, 1]


@pytest.mark.slow
def test_a_large_dense_matrix() -> None:
    need_memory(6)
    cols = 2**29 + 3
    crow = torch.tensor([0, 1, 1, 1, 1, 3], dtype=torch.int32)
    col = torch.tensor([1, 0, cols - 1], dtype=torch.int32)
    dense = csr.to_dense(torch.ones(3, dtype=torch.bool), crow, col, cols)
    assert dense[-1, -1]
    assert dense[-1, 0]
    assert dense[0, 1]
    assert torch.count_nonzero(dense) == 3


def test_optimizers() -> None:
    """Few weights are kept; what is masked is neither read nor written."""
    numel = BORDER + 130
    bits = lazy((numel + 7) // 8, dtype=torch.uint8)
    places = torch.tensor([0, BORDER - 1, BORDER, numel - 1])
    for place in places.tolist():
        bits[place // 8] |= 1 << (place % 8)
    p, grad, m, v = (lazy(numel) for _ in range(4))
    grad[places] = torch.tensor([2.0, 4, 4, 8])
    assert update.masked_norm([grad], [bits]) == 10
    update.masked_sgd_([p], [grad], [m], [True], [bits], lr=0.5, momentum=0.5)
    assert p[places].tolist() == [-1, -2, -2, -4]
    assert m[places].tolist() == [2, 4, 4, 8]
    m[places] = 0.0
    p[places] = 1.0
    options = {"lr": 0.5, "betas": (0.5, 0.75), "eps": 0.0, "weight_decay": 0.0}
    update.masked_adamw_([p], [grad], [m], [v], [torch.ones(())], [bits], **options)
    assert p[places].tolist() == [0.5] * 4
    assert (p[places[1] - 1], p[places[2] + 1], p[places[3] - 1]) == (0, 0, 0)
