"""Convolutions of channels_last images: the bits of NCHW, in the memory format of x."""

from __future__ import annotations

import ctypes
import mmap
import sys

import pytest
import torch
from torch import Tensor

from sparsekern._extension import native
from sparsekern.ops import csr
from sparsekern.ops.csr._convolutions import CONVOLUTIONS, Convolution

LAST = torch.channels_last
LARGE = (  # read in bands of rows, and in bands of columns of one row
    Convolution("tall", (2, 40, 90, 33), 12, (3, 3), padding=(1, 1), density=0.05),
    Convolution("tall_strided", (2, 40, 90, 37), 12, (3, 3), (2, 2), (1, 1), density=0.05),
    Convolution("wide", (1, 90, 7, 300), 10, (3, 3), padding=(1, 1), density=0.05),
    Convolution("wide_strided", (1, 90, 9, 300), 10, (1, 5), (1, 2), (0, 2), density=0.05),
    Convolution("flat", (2, 200, 50, 51), 12, (1, 1), density=0.05),
    Convolution("narrow_bands", (1, 800, 5, 32), 4, (1, 7), padding=(0, 3), density=0.02),
)
CASES = [case for case in (*CONVOLUTIONS, *LARGE) if case.input_shape[0] > 0]


def run(case: Convolution, x: Tensor, grad: Tensor, values: Tensor) -> tuple[Tensor, ...]:
    x, values = x.detach().requires_grad_(), values.detach().requires_grad_()
    bias = torch.linspace(-1, 1, case.out_channels, dtype=values.dtype, requires_grad=True)
    index = csr.index_from_mask(case.mask())
    y = csr.conv2d(x, values, index, bias, **case.geometry)
    return y, *torch.autograd.grad(y, (x, values, bias), grad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_same_bits_as_nchw(case: Convolution, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(case.input_shape, generator=generator).to(dtype)
    value_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    values = torch.randn(int(case.mask().sum()), generator=generator, dtype=value_dtype)
    with torch.no_grad():
        bias = torch.zeros(case.out_channels, dtype=value_dtype)
        y = csr.conv2d(x, values, csr.index_from_mask(case.mask()), bias, **case.geometry)
    grad = torch.randn(y.shape, generator=generator).to(dtype)
    right = run(case, x, grad, values)
    for x_format, grad_format in ((LAST, LAST), (LAST, None), (None, LAST)):
        images = x if x_format is None else x.to(memory_format=x_format)
        grads = grad if grad_format is None else grad.to(memory_format=grad_format)
        got = run(case, images, grads, values)
        last = x_format is not None and not images.is_contiguous()
        for name, mine, theirs in zip(("y", "dx", "dvalues"), got, right, strict=False):
            if native.loaded:
                assert torch.equal(mine, theirs), name
            torch.testing.assert_close(mine, theirs, rtol=1e-2, atol=1e-2)
            if last and name != "dvalues":
                assert mine.is_contiguous(memory_format=LAST), name
        torch.testing.assert_close(got[3], right[3], rtol=1e-4, atol=1e-3)


@pytest.mark.skipif(sys.platform != "linux", reason="memory is protected by Linux's calls")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_nothing_is_read_behind_the_images(case: Convolution) -> None:
    """The images end where a page begins that no one may touch."""
    x = torch.randn(case.input_shape).permute(0, 2, 3, 1)
    size = -(-x.nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
    memory = mmap.mmap(-1, size + mmap.PAGESIZE)
    begin = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    protect = ctypes.CDLL(None).mprotect
    assert protect(ctypes.c_void_p(begin + size), ctypes.c_size_t(mmap.PAGESIZE), 0) == 0
    guarded = torch.frombuffer(memory, dtype=torch.float32, count=x.numel(), offset=size - x.nbytes)
    images = guarded.view(x.shape).copy_(x).permute(0, 3, 1, 2)
    values = torch.randn(int(case.mask().sum()))
    index = csr.index_from_mask(case.mask())
    y = csr.conv2d(images, values, index, **case.geometry)
    assert torch.equal(y, csr.conv2d(images.clone(), values, index, **case.geometry))


def test_same_bits_for_any_number_of_threads() -> None:
    case = CASES[0]
    x = torch.randn(case.input_shape).to(memory_format=LAST)
    values = torch.randn(int(case.mask().sum()))
    grad = torch.randn(3, 34, 16, 16).to(memory_format=LAST)
    many = run(case, x, grad, values)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = run(case, x, grad, values)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(many, one, strict=True))


def test_a_part_of_channels_last_images() -> None:
    """Slices that are no longer channels_last are copied, and read right."""
    case = CASES[0]
    whole = torch.randn(6, 24, 18, 20).to(memory_format=LAST)
    part = whole[::2, :20, 1:-1, 2:18]
    assert not part.is_contiguous(memory_format=LAST)
    values = torch.randn(int(case.mask().sum()))
    grad = torch.randn(3, 34, 16, 16)
    for mine, theirs in zip(
        run(case, part, grad, values), run(case, part.contiguous(), grad, values), strict=True
    ):
        assert torch.equal(mine, theirs)
