"""bsr_linear: a case worked by hand, every shape of block, and what the contract does not ask."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sparsekern._extension import native
from sparsekern.ops import OPS, bsr, csr
from sparsekern.testing import assert_close_to_oracle

needs_native = pytest.mark.skipif(not native.loaded, reason="the native library is not loaded")


def test_by_hand() -> None:
    """One block of two outputs by two inputs, at the inputs 2 and 3 of four."""
    index = bsr.index_from_mask(torch.tensor([[False, True]]))
    values = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]], requires_grad=True)
    x = torch.tensor([[9.0, 9.0, 1.0, 10.0]], requires_grad=True)
    bias = torch.tensor([100.0, 200.0], requires_grad=True)
    y = bsr.linear(x, values, index, bias)
    assert y.tolist() == [[121.0, 243.0]]
    y.backward(torch.tensor([[1.0, 2.0]]))
    assert x.grad.tolist() == [[0.0, 0.0, 7.0, 10.0]]
    assert values.grad.tolist() == [[[1.0, 10.0], [2.0, 20.0]]]
    assert bias.grad.tolist() == [1.0, 2.0]


def _case(block: tuple[int, int], batch: int, rows: int = 3, cols: int = 4) -> list[Tensor]:
    generator = torch.Generator().manual_seed(block[0] * 100 + block[1])
    kept = torch.rand(rows, cols, generator=generator) < 0.5
    kept[0, 0] = True
    index = bsr.index_from_mask(kept)
    return [
        torch.randn(batch, rows * block[0], generator=generator),
        torch.randn(batch, cols * block[1], generator=generator),
        torch.randn(index.blocks, *block, generator=generator),
        *index,
    ]


def _check_all(arguments: list[Tensor]) -> None:
    grad, x, values, *index = arguments
    doubled = [t.double() for t in (grad, x, values)]
    op, back = OPS["bsr_linear"], OPS["bsr_linear_backward"]
    got = op(x, values, None, None, *index, variant="panel")
    plain = op.reference(x, values, None, None, *index)
    oracle = op.reference(doubled[1], doubled[2], None, None, *index)
    assert_close_to_oracle(got, plain, oracle, "y")
    mask = [True, True, True]
    results = back(grad, x, values, *index, mask, variant="panel")
    plains = back.reference(grad, x, values, *index, mask)
    oracles = back.reference(*doubled, *index, mask)
    for name, g, p, o in zip(("dx", "dvalues", "dbias"), results, plains, oracles, strict=True):
        assert_close_to_oracle(g, p, o, name)


@needs_native
@pytest.mark.parametrize("height", [1, 2, 3, 4, 7, 8, 12, 16, 31, 32, 48, 64])
@pytest.mark.parametrize("width", [1, 2, 5, 8, 9, 16, 24, 32, 33, 64])
def test_every_shape_of_block(height: int, width: int) -> None:
    for batch in (3, 21, 70):
        _check_all(_case((height, width), batch))


@needs_native
@pytest.mark.parametrize("block", [(16, 16), (4, 4)])
def test_batch_of_several_waves(block: tuple[int, int]) -> None:
    """Gradients of values add up over waves of tiles (csrc/cpu/bsr/linear_backward.cpp)."""
    side = 640
    _check_all(_case(block, 64 * 13 + 33, side // block[0], side // block[1]))


@needs_native
@pytest.mark.parametrize(
    ("name", "at", "value"),
    [
        ("crow", 1, 99),
        ("crow", 1, -1),
        ("col", 0, 4),
        ("col", 0, -1),
        ("crow_t", 1, 99),
        ("col_t", 0, 3),
        ("col_t", 0, -5),
        ("perm", 0, 1000),
        ("perm", 0, -1),
    ],
)
def test_damaged_index_is_a_sentence(name: str, at: int, value: int) -> None:
    """Native code refuses an index that points out of the matrix; it never follows it."""
    grad, x, values, *index = _case((4, 4), 5)
    parts = dict(zip(bsr.BsrIndex._fields, index, strict=True))
    parts[name] = parts[name].clone()
    parts[name][at] = value
    with pytest.raises(RuntimeError, match=f"Expected {name.removesuffix('_t')}"):
        OPS["bsr_linear_backward"](grad, x, values, *parts.values(), [True] * 3, variant="panel")
    if name in ("crow", "col"):
        with pytest.raises(RuntimeError, match=f"Expected {name}"):
            OPS["bsr_linear"](x, values, None, None, *parts.values(), variant="panel")


def test_same_as_csr() -> None:
    kept = torch.rand(5, 6, generator=torch.Generator().manual_seed(0)) < 0.4
    index = bsr.index_from_mask(kept)
    values = torch.randn(index.blocks, 8, 4)
    dense = bsr.to_dense(values, index.crow, index.col, 6)
    other = csr.index_from_mask(dense != 0)
    x = torch.randn(9, 24)
    right = csr.linear(x, csr.gather(dense, other.crow, other.col), other)
    torch.testing.assert_close(bsr.linear(x, values, index), right)


@pytest.mark.parametrize("variant", ["auto", "dense", "reference"])
def test_activations(variant: str) -> None:
    """Kernels that do not apply them leave it to torch."""
    _, x, values, *index = _case((4, 4), 5)
    for name, right in (("relu", F.relu), ("gelu", F.gelu), ("none", torch.Tensor.clone)):
        y = bsr.linear(x, values, bsr.BsrIndex(*index), activation=name, variant=variant)
        torch.testing.assert_close(y, right(bsr.linear(x, values, bsr.BsrIndex(*index))))
    with pytest.raises(ValueError, match="Expected activation to be none, relu, gelu or gelu_tanh"):
        bsr.linear(x, values, bsr.BsrIndex(*index), activation="silu")
