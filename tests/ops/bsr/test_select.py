"""Masks of whole blocks."""

from __future__ import annotations

import pytest
import torch

from sparsekern.ops import bsr


def test_by_hand() -> None:
    """Sums of the 2 x 2 blocks: 4, 10, 3, 0; the two largest stay."""
    scores = torch.tensor([[1.0, 1, 9, 0], [1, 1, 0, 1], [0, 3, 0, 0], [0, 0, 0, 0]])
    assert bsr.block_sums(scores, (2, 2)).tolist() == [[4, 10], [3, 0]]
    mask = bsr.block_topk(scores, 2, (2, 2))
    assert mask.int().tolist() == [[1, 1, 1, 1], [1, 1, 1, 1], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert bsr.block_any(mask, (2, 2)).tolist() == [[True, True], [False, False]]


def test_equal_blocks_first_in_order() -> None:
    mask = bsr.block_topk(torch.ones(2, 6), 1, (2, 3))
    assert mask.int().tolist() == [[1, 1, 1, 0, 0, 0]] * 2


def test_blocks_of_a_convolution_are_channels_of_one_tap() -> None:
    scores = torch.zeros(2, 4, 1, 3)
    scores[:, 2:, :, 1] = 1
    mask = bsr.block_topk(scores, 1, (2, 2))
    assert torch.equal(mask, scores.bool())


def test_sentences() -> None:
    with pytest.raises(ValueError, match="Expected blocks of 2 x 4 to divide a 4 x 6 matrix"):
        bsr.block_topk(torch.zeros(4, 6), 1, (2, 4))
    with pytest.raises(ValueError, match="Expected k to be"):
        bsr.block_topk(torch.zeros(4, 6), 7, (2, 2))
