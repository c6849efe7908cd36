"""mask ops: cases worked by hand."""

from __future__ import annotations

import pytest
import torch

from sparsekern.ops import mask as mask_ops


def test_topk_by_hand() -> None:
    """Ties go to the first position; -0.0 ties with 0.0; NaN is last."""
    scores = torch.tensor([1.0, 3, 3, float("nan"), 2, 3, -0.0, 0.0])
    assert mask_ops.topk(scores, 2).tolist() == [False, True, True] + [False] * 5
    assert mask_ops.topk(scores, 6).nonzero().flatten().tolist() == [0, 1, 2, 4, 5, 6]
    assert mask_ops.topk(scores, 7).nonzero().flatten().tolist() == [0, 1, 2, 4, 5, 6, 7]


def test_topk_among_by_hand() -> None:
    scores = torch.tensor([5.0, 4, 3, 2])
    among = torch.tensor([False, True, False, True])
    assert mask_ops.topk(scores, 1, among).tolist() == [False, True, False, False]


def test_topk_bits_by_hand() -> None:
    scores = torch.tensor([5.0, 4, 3, 2, 1, 0, 1, 2, 9])
    assert mask_ops.topk_bits(scores, 3).tolist() == [0b00000011, 1]
    among = torch.tensor([0b10001100, 0], dtype=torch.uint8)
    assert mask_ops.topk_bits(scores, 2, among).tolist() == [0b00001100, 0]
    assert mask_ops.count(among) == 3
    assert mask_ops.count(scores > 1) == 6


def test_topk_rows_by_hand() -> None:
    """Each row for itself; ties go to the first, NaN is last."""
    nan = float("nan")
    scores = torch.tensor([[1.0, 3, 3, 2], [nan, -1, 0, -0.0]])
    kept = mask_ops.topk_rows(scores, 2)
    assert kept.int().tolist() == [[0, 1, 1, 0], [0, 0, 1, 1]]
    kept = mask_ops.topk_rows(scores, torch.tensor([1, 4]))
    assert kept.int().tolist() == [[0, 1, 0, 0], [1, 1, 1, 1]]
    kept = mask_ops.topk_rows(scores, 1, scores < 3)
    assert kept.int().tolist() == [[0, 0, 0, 1], [0, 0, 1, 0]]


def test_topk_rows_of_a_convolution() -> None:
    scores, among = torch.randn(4, 3, 2, 2), torch.rand(4, 3, 2, 2) < 0.9
    kept = mask_ops.topk_rows(scores, 5, among)
    right = mask_ops.topk_rows(scores.flatten(1), 5, among.flatten(1))
    assert torch.equal(kept.flatten(1), right)
    assert (right.sum(1) == 5).all()


@pytest.mark.parametrize("k", [0, 1, 12_345, 99_999, 100_000])
def test_topk_counts_exactly(k: int) -> None:
    scores = torch.randint(0, 5, (100_000,)).float()
    assert int(mask_ops.topk(scores, k).sum()) == k


def test_masks_of_many_megabytes() -> None:
    """Larger than what native code keeps of activations' memory."""
    scores = torch.rand(2999, 3001)
    mask = mask_ops.topk(scores, 1000)
    assert mask.dtype == torch.bool
    assert int(mask.sum()) == 1000
    assert scores[mask].min() >= scores[~mask].max()
    unpacked = mask_ops.unpack_bits(mask_ops.pack_bits(mask), (2999, 3001))
    assert unpacked.dtype == torch.bool
    assert torch.equal(unpacked, mask)


def test_bits_by_hand() -> None:
    mask = torch.tensor([True, False, False, True, False, False, False, False, True])
    bits = mask_ops.pack_bits(mask)
    assert bits.tolist() == [0b1001, 0b1]
    assert mask_ops.unpack_bits(bits, (3, 3)).tolist() == mask.view(3, 3).tolist()
    x = torch.arange(1.0, 10)
    mask_ops.apply_(x, bits)
    assert x.tolist() == [1, 0, 0, 4, 0, 0, 0, 0, 9]


def test_linear_by_hand() -> None:
    """W = [[0, 2], [1, 0]]: outputs as dense, the gradient of the zeros is zero."""
    weight = torch.tensor([[0.0, 2], [1, 0]], requires_grad=True)
    bits = mask_ops.pack_bits(weight.detach() != 0)
    x = torch.tensor([[3.0, 4]], requires_grad=True)
    y = mask_ops.linear(x, weight, bits, torch.tensor([10.0, 20]))
    assert y.tolist() == [[18, 23]]
    y.backward(torch.tensor([[1.0, 2]]))
    assert weight.grad.tolist() == [[0, 4], [6, 0]]
    assert x.grad.tolist() == [[2, 2]]
