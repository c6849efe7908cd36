"""bsr_conv2d: a case worked by hand, and what the contract suite does not ask."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sparsekern._extension import native
from sparsekern.ops import OPS, bsr

needs_native = pytest.mark.skipif(not native.loaded, reason="no native library")


def test_by_hand() -> None:
    """One block: output 0 and 1 of the channels 0 and 1 at the right one of two taps."""
    index = bsr.index_from_mask(torch.tensor([[False, True]]))
    values = torch.tensor([[[1.0, 10.0], [0.0, 1.0]]], requires_grad=True)
    x = torch.tensor([[[[1.0, 2.0, 3.0]], [[4.0, 5.0, 6.0]]]], requires_grad=True)
    y = bsr.conv2d(x, values, index, torch.tensor([0.5, 0.0]), kernel_size=(1, 2))
    assert y.tolist() == [[[[52.5, 63.5]], [[5.0, 6.0]]]]
    y.backward(torch.tensor([[[[1.0, 0.0]], [[0.0, 2.0]]]]))
    assert x.grad.tolist() == [[[[0.0, 1.0, 0.0]], [[0.0, 10.0, 2.0]]]]
    assert values.grad.tolist() == [[[2.0, 5.0], [6.0, 12.0]]]


def _case() -> tuple[Tensor, Tensor, list[Tensor]]:
    kept = torch.rand(3, 18, generator=torch.Generator().manual_seed(0)) < 0.4
    kept[0, 0] = True
    index = bsr.index_from_mask(kept)
    return torch.randn(2, 8, 6, 5), torch.randn(index.blocks, 4, 4), list(index)


@needs_native
@pytest.mark.parametrize(
    ("name", "at", "value"), [("crow", 1, 99), ("crow", 1, -1), ("col", 0, 18), ("col", 0, -1)]
)
def test_damaged_index_is_a_sentence(name: str, at: int, value: int) -> None:
    x, values, index = _case()
    parts = dict(zip(bsr.BsrIndex._fields, index, strict=True))
    parts[name] = parts[name].clone()
    parts[name][at] = value
    geometry = {"kernel_size": (3, 3), "variant": "plane"}
    with pytest.raises(RuntimeError, match=f"Expected {name}"):
        OPS["bsr_conv2d"](x, values, None, None, *parts.values(), **geometry)
    grad = torch.randn(2, 12, 4, 3)
    with pytest.raises(RuntimeError, match=f"Expected {name}"):
        OPS["bsr_conv2d_backward"](grad, x, values, *parts.values(), [True] * 3, **geometry)


def test_blocks_over_two_groups_run_dense() -> None:
    index = bsr.index_from_mask(torch.tensor([[True]]))
    values, x = torch.randn(1, 6, 2), torch.randn(2, 4, 3, 3)
    y = bsr.conv2d(x, values, index, kernel_size=(1, 1), groups=2)
    torch.testing.assert_close(y, F.conv2d(x, values.view(6, 2, 1, 1), groups=2))
    if native.loaded:
        with pytest.raises(NotImplementedError, match="no block may reach over two groups"):
            bsr.conv2d(x, values, index, kernel_size=(1, 1), groups=2, variant="plane")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_values_are_widened(dtype: torch.dtype) -> None:
    x, values, index = _case()
    half = values.to(dtype).requires_grad_()
    bias = torch.zeros(12, dtype=dtype)
    y = bsr.conv2d(x.to(dtype), half, bsr.BsrIndex(*index), bias, kernel_size=(3, 3))
    assert y.dtype == dtype
    y.sum().backward()
    assert half.grad.dtype == dtype
