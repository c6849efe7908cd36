"""Index building: cases worked by hand."""

from __future__ import annotations

import torch

from sparsekern.ops import csr
from sparsekern.ops.csr.panel_starts import PanelGeometry


def test_from_mask_by_hand() -> None:
    mask = torch.tensor([[True, False, True], [False, False, False], [False, True, True]])
    crow, col = csr.from_mask(mask, 4)
    assert crow.tolist() == [0, 2, 2, 4]
    assert col.tolist() == [0, 2, 1, 2]


def test_transpose_by_hand() -> None:
    mask = torch.tensor([[True, False, True], [False, False, False], [False, True, True]])
    crow_t, col_t, perm = csr.transpose(*csr.from_mask(mask, 4), 3)
    assert crow_t.tolist() == [0, 1, 2, 4]
    assert col_t.tolist() == [0, 2, 0, 2]
    assert perm.tolist() == [0, 2, 1, 3]


def test_position_map_by_hand() -> None:
    old = csr.from_mask(torch.tensor([[True, False, True], [False, True, False]]), 3)
    new = csr.from_mask(torch.tensor([[False, True, True], [True, True, False]]), 4)
    assert csr.position_map(*old, *new).tolist() == [-1, 1, -1, 2]


def test_dense_and_back_by_hand() -> None:
    crow, col = csr.from_mask(torch.tensor([[False, True], [True, True]]), 3)
    dense = csr.to_dense(torch.tensor([1.0, 2, 3]), crow, col, 2)
    assert dense.tolist() == [[0, 1], [2, 3]]
    assert csr.gather(dense, crow, col).tolist() == [1, 2, 3]


def test_panel_starts_by_hand() -> None:
    """Two panels of 128 columns: where each row's entries begin in the first and in the second."""
    mask = torch.zeros(2, 256, dtype=torch.bool)
    mask[0, [3, 130, 131]] = True
    mask[1, torch.arange(0, 256, 2)] = True
    crow, col = csr.from_mask(mask, 131)
    geometry = PanelGeometry(2, 256, 131)
    assert (geometry.panels, geometry.panel) == (2, 128)
    starts = csr.panel_starts(crow, col, 256)
    assert starts.tolist() == [0, 3, 1, 67, 3, 131, 1, 2, 256, 131]


def test_length_depends_on_counts_only() -> None:
    """Any two topologies of equal shape and count need buffers of the same length."""
    generator = torch.Generator().manual_seed(0)
    lengths = set()
    for _ in range(20):
        order = torch.randperm(300 * 200, generator=generator)[:1234]
        mask = torch.zeros(300 * 200, dtype=torch.bool)
        mask[order] = True
        index = csr.index_from_mask(mask.view(300, 200))
        lengths.add((index.starts.numel(), index.starts_t.numel()))
    assert len(lengths) == 1
