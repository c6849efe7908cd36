"""Blocks of a mask, and the index of a block matrix."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sparsekern.ops import bsr


def test_by_hand() -> None:
    """Blocks (0, 1) and (1, 0) of a 4 x 6 matrix of 2 x 3 blocks."""
    mask = torch.zeros(4, 6, dtype=torch.bool)
    mask[:2, 3:] = mask[2:, :3] = True
    kept = bsr.block_mask(mask, (2, 3))
    assert kept.tolist() == [[False, True], [True, False]]
    index = bsr.index_from_mask(kept)
    assert index.crow.tolist() == [0, 1, 2]
    assert index.col.tolist() == [1, 0]
    assert index.crow_t.tolist() == [0, 1, 2]
    assert index.col_t.tolist() == [1, 0]
    assert index.perm.tolist() == [1, 0]
    values = torch.arange(12.0).view(2, 2, 3)
    dense = bsr.to_dense(values, index.crow, index.col, 2)
    assert dense.tolist() == [
        [0, 0, 0, 0, 1, 2],
        [0, 0, 0, 3, 4, 5],
        [6, 7, 8, 0, 0, 0],
        [9, 10, 11, 0, 0, 0],
    ]
    assert torch.equal(bsr.gather(dense, index.crow, index.col, (2, 3)), values)


def test_positions_of_elements() -> None:
    positions = bsr.element_positions(torch.tensor([2, -1], dtype=torch.int32), (1, 3))
    assert positions.tolist() == [[[6, 7, 8]], [[-1, -1, -1]]]


def test_weight_of_a_convolution_has_neighbouring_channels() -> None:
    weight = torch.arange(2 * 3 * 2 * 2).view(2, 3, 2, 2)
    matrix = bsr.as_matrix(weight)
    assert matrix[0].tolist() == [0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11]
    assert torch.equal(bsr.from_matrix(matrix, (2, 3, 2, 2)), weight)


@pytest.mark.parametrize(
    ("mask", "block", "kind", "sentence"),
    [
        (torch.ones(4, 6), (2, 2), TypeError, "Expected mask to have dtype torch.bool"),
        (torch.ones(4, dtype=torch.bool), (2, 2), ValueError, "Expected mask to have 2 dimensions"),
        (
            torch.ones(4, 6, dtype=torch.bool),
            (3, 2),
            ValueError,
            "Expected blocks of 3 x 2 to divide a 4 x 6 matrix. Got one that they do not",
        ),
        (
            torch.eye(4, dtype=torch.bool),
            (2, 2),
            ValueError,
            "Expected mask to keep or drop whole blocks of 2 x 2. Got 2 blocks that it keeps in "
            "part, the first at row 0, column 0.",
        ),
    ],
)
def test_masks_of_no_blocks(mask: Any, block: Any, kind: type[Exception], sentence: str) -> None:
    with pytest.raises(kind, match=sentence):
        bsr.block_mask(mask, block)
