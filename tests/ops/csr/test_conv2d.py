"""What the contract cannot see of ``csr_conv2d``: where its results lie in memory."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from sparsekern._extension import native
from sparsekern.ops import csr

pytestmark = pytest.mark.skipif(not native.loaded, reason="native code only")

SHAPE = (8, 32, 64, 64)  # 4 MiB of results


def convolve(x: Tensor) -> Tensor:
    """A 1 x 1 convolution that doubles its input."""
    mask = torch.eye(x.shape[1], dtype=torch.bool)[:, :, None, None]
    values = torch.full((x.shape[1],), 2.0)
    return csr.conv2d(x, values, csr.index_from_mask(mask), None, kernel_size=(1, 1))


def test_results_that_are_alive_share_nothing() -> None:
    inputs = [torch.randn(SHAPE) for _ in range(3)]
    results = [convolve(x) for x in inputs]
    assert len({y.data_ptr() for y in results}) == 3
    for x, y in zip(inputs, results, strict=True):
        assert torch.equal(y, 2 * x)


def test_a_view_keeps_the_memory() -> None:
    x = torch.randn(SHAPE)
    part = convolve(x)[3, 5:7]
    others = [convolve(torch.zeros(SHAPE)) for _ in range(3)]
    assert torch.equal(part, 2 * x[3, 5:7])
    assert all(not y.any() for y in others)


@pytest.mark.skipif(
    sys.platform != "linux" or torch.__version__ < "2.11", reason="needs torch_from_blob"
)
def test_memory_is_used_again() -> None:
    x = torch.randn(SHAPE)
    first = convolve(x).data_ptr()
    assert convolve(x).data_ptr() == first


def test_results_are_ordinary_tensors() -> None:
    y = convolve(torch.ones(SHAPE))
    assert y.is_contiguous()
    assert y.clone().add_(1).sum() == 3 * y.numel()
    y += 1
    y.resize_(2, 3)  # smaller: in place
    assert torch.equal(y, torch.full((2, 3), 3.0))
    shared = convolve(torch.ones(SHAPE)).share_memory_()
    assert shared.is_shared()
    assert torch.equal(shared, torch.full(SHAPE, 2.0))


@pytest.mark.parametrize("megabytes", ["0", "5", "100000", "nonsense"])
def test_the_limit_of_kept_memory(megabytes: str) -> None:
    code = (
        "from tests.ops.csr.test_conv2d import *\n"
        "for size in (8, 12, 16, 8, 20, 8):\n"
        "    x = torch.randn(size, 32, 64, 64)\n"
        "    assert torch.equal(convolve(x), 2 * x)\n"
    )
    environment = {**os.environ, "SPARSEKERN_KEEP_MB": megabytes}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    if megabytes == "nonsense":
        assert "Expected SPARSEKERN_KEEP_MB to be a whole number of megabytes" in done.stderr
    else:
        assert done.returncode == 0, done.stderr
