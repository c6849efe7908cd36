"""Index building: cases worked by hand."""

from __future__ import annotations

import pytest
import torch

from sparsekern.ops import OPS, csr
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


def test_rebuild_by_hand() -> None:
    index = csr.index_from_mask(torch.tensor([[True, False, True], [False, True, False]]))
    pointers = [tensor.data_ptr() for tensor in index]
    new = torch.tensor([[False, True, True], [True, False, False]])
    assert csr.rebuild_(index, new, (2, 3)).tolist() == [-1, 1, -1]
    assert index.crow.tolist() == [0, 2, 3]
    assert index.col.tolist() == [1, 2, 0]
    assert index.crow_t.tolist() == [0, 1, 2, 3]
    assert index.col_t.tolist() == [1, 0, 0]
    assert index.perm.tolist() == [2, 0, 1]
    assert [tensor.data_ptr() for tensor in index] == pointers
    state = torch.tensor([1.0, 2, 3])
    csr.move_(state, torch.tensor([-1, 1, -1], dtype=torch.int32))
    assert state.tolist() == [0, 2, 0]


@pytest.mark.parametrize("density", [0.02, 0.3])  # by entries, by bits
def test_rebuild_of_a_bad_index_changes_nothing(density: float) -> None:
    """Around the checks in Python: an error in one sentence, or an index that is right again."""
    mask = torch.rand(70, 90, generator=torch.Generator().manual_seed(0)) < density
    right = csr.index_from_mask(mask)
    for crow in (right.crow + 1, right.crow.flip(0), -right.crow):
        broken = csr.CsrIndex(*[tensor.clone() for tensor in right])._replace(crow=crow)
        before = [tensor.clone() for tensor in broken]
        with pytest.raises(RuntimeError, match=r"Expected crow (to run|not to decrease)"):
            OPS["csr_rebuild_"].overload(*broken, mask.flip(0), 90, 1)
        assert all(map(torch.equal, broken, before))
    index = csr.CsrIndex(*[tensor.clone() for tensor in right])
    index.col.fill_(2**31 - 1)
    positions = csr.rebuild_(index, mask, (70, 90))
    assert (positions == -1).all()
    assert all(map(torch.equal, index, right))
    with pytest.raises(RuntimeError, match=r"Expected mask to have \d+ True entries\. Got 6300"):
        csr.rebuild_(index, torch.ones_like(mask), (70, 90))
    assert all(map(torch.equal, index, right))


def test_dense_and_back_by_hand() -> None:
    crow, col = csr.from_mask(torch.tensor([[False, True], [True, True]]), 3)
    dense = csr.to_dense(torch.tensor([1.0, 2, 3]), crow, col, 2)
    assert dense.tolist() == [[0, 1], [2, 3]]
    assert csr.gather(dense, crow, col).tolist() == [1, 2, 3]


def test_panel_starts_by_hand() -> None:
    """Two panels of 96 columns: where each row's entries begin in the first and in the second."""
    mask = torch.zeros(2, 192, dtype=torch.bool)
    mask[0, [3, 100, 101]] = True
    mask[1, torch.arange(0, 192, 2)] = True
    crow, col = csr.from_mask(mask, 99)
    geometry = PanelGeometry(2, 192, 99)
    assert (geometry.panels, geometry.panel) == (2, 96)
    starts = csr.panel_starts(crow, col, 192)
    assert starts.tolist() == [0, 3, 1, 51, 3, 99, 2, 2, 192, 99]


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
