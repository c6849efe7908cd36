"""A change of topology on the device: nothing waits for it, and wrong counts break nothing.

Runs itself once more in a process where Triton's interpreter takes the place of a GPU.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from sparsekern.kernels.launch import INTERPRETING, recording
from sparsekern.ops import OPS, csr
from sparsekern.ops import mask as mask_ops

pytest.importorskip("triton", reason="triton is not installed")
interpreted = pytest.mark.skipif(not INTERPRETING, reason="runs in a process of its own")
WAITING = ("item", "tolist", "numpy", "nonzero", "__bool__", "__int__", "__float__", "__index__")
NAN, INF = float("nan"), float("inf")


@pytest.mark.skipif(INTERPRETING, reason="this is that process")
def test_under_the_interpreter() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1", "SPARSEKERN_NATIVE": "0"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", __file__]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-3000:]


@pytest.fixture
def nothing_waits(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What would make the host wait for a GPU raises."""

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("the host would wait for the device here")

    for name in WAITING:
        monkeypatch.setattr(Tensor, name, refuse)
    for name in ("nonzero", "masked_select", "unique", "equal"):
        monkeypatch.setattr(torch, name, refuse)
    yield
    monkeypatch.undo()


def _changed(weight: Tensor, growth: Tensor, mask: Tensor, index: csr.CsrIndex) -> Any:
    """One step of dropping and growing 40 weights: the mask, its bits and where entries were."""
    kept = mask_ops.topk(weight.abs(), index.nnz - 40, mask)
    grown = mask_ops.topk(growth, 40, ~kept)
    new = kept | grown
    bits = mask_ops.pack_bits(new)
    positions = csr.rebuild_(index, bits, tuple(weight.shape))
    state = torch.arange(1.0, index.nnz + 1)
    csr.move_(state, positions)
    mask_ops.apply_(weight, bits)
    return new, positions, state


@interpreted
@pytest.mark.parametrize("shape", [(90, 110), (24, 30, 3, 3)])
def test_a_change_of_topology_never_waits(
    shape: tuple[int, ...], nothing_waits: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight, growth = torch.randn(shape), torch.rand(shape)
    mask = mask_ops.topk(weight.abs(), 500)
    index = csr.index_from_mask(mask, 500)
    old = csr.CsrIndex(*[tensor.clone() for tensor in index])
    new, positions, state = _changed(weight, growth, mask, index)
    rows = mask_ops.topk_rows(growth.flatten(1), 5)
    monkeypatch.undo()
    assert int(new.sum()) == 500
    assert (rows.sum(1) == 5).all()
    assert all(map(torch.equal, index, csr.index_from_mask(new)))
    right = csr.position_map(old.crow, old.col, index.crow, index.col)
    assert torch.equal(positions, right)
    assert torch.equal(state, torch.where(right >= 0, right + 1.0, 0.0))
    assert torch.equal(weight != 0, new)


def test_plain_torch_of_a_gpu_never_waits() -> None:
    """What stays plain torch there; devices do not mix in it, and no size depends on data."""
    with FakeTensorMode():
        crow = torch.zeros(91, dtype=torch.int32, device="cuda")
        col = torch.zeros(500, dtype=torch.int32, device="cuda")
        for taps in (1, 10):
            index = OPS["csr_transpose"].reference(crow, col, 110, taps)
            assert [tensor.shape[0] for tensor in index] == [110 // taps + 1, 500, 500]
            assert all(t.device.type == "cuda" and t.dtype == torch.int32 for t in index)
        starts = OPS["csr_panel_starts"].reference(crow, col, 110)
        positions = OPS["csr_position_map"].reference(crow, col, crow, col)
        assert {starts.device.type, positions.device.type} == {"cuda"}
        # In-place ops cannot be imitated without a GPU.
        bits = OPS["mask_pack_bits"].reference(torch.zeros(9, dtype=torch.bool, device="cuda"))
        flags = OPS["mask_unpack_bits"].reference(bits, (3, 3))
        assert OPS["mask_count"].reference(flags).device.type == "cuda"


@interpreted
@pytest.mark.parametrize("numel", [9, 20_000, 140_000])  # one program, walked, bracketed
def test_ties_zeros_and_what_is_no_number(numel: int) -> None:
    """inf, 2, 2, 0, -0, -inf, NaN, NaN and -2, over and over: the first of equals win."""
    values = torch.tensor([INF, 2, 2, 0.0, -0.0, -INF, NAN, NAN, -2])
    scores = values.repeat(-(-numel // 9))[:numel]
    rank = torch.tensor([6.0, 5, 5, 4, 4, 2, 1, 1, 3]).repeat(-(-numel // 9))[:numel]
    order = torch.argsort(rank, descending=True, stable=True)
    for k in {0, 1, numel // 3, numel // 2 + 1, numel - numel // 9, numel - 1, numel}:
        mask = mask_ops.topk(scores, k)
        assert torch.equal(mask.nonzero().flatten(), order[:k].sort()[0]), k
        assert torch.equal(mask_ops.topk_bits(scores, k), mask_ops.pack_bits(mask)), k


@interpreted
def test_a_bracket_that_holds_too_much() -> None:
    """The threshold lies between two values that a fifth of the scores have: none are listed."""
    scores = torch.randint(0, 10, (140_000,)).float()
    for k in (int((scores >= 5).sum()), int((scores >= 5).sum()) + 7):
        assert torch.equal(mask_ops.topk(scores, k), OPS["mask_topk"].reference(scores, k))


@interpreted
@pytest.mark.parametrize("numel", [9, 20_000, 140_000])
def test_fewer_candidates_than_k(numel: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them are kept; with SPARSEKERN_DEBUG=1 it is an error."""
    scores, among = torch.randn(numel), torch.rand(numel) < 0.3
    scores[among & (scores > 1)] = NAN
    k, bits = int(among.sum()) + 1, mask_ops.pack_bits(among)
    assert torch.equal(mask_ops.topk(scores, k, among), among)
    assert torch.equal(mask_ops.topk_bits(scores, k, bits), bits)
    assert not mask_ops.topk(scores, 1, among & False).any()
    monkeypatch.setenv("SPARSEKERN_DEBUG", "1")
    for op, flags in ((mask_ops.topk, among), (mask_ops.topk_bits, bits)):
        with pytest.raises(RuntimeError, match=f"^Expected k to be at most .* Got {k}"):
            op(scores, k, flags)
        assert mask_ops.count(op(scores, k - 1, flags)) == k - 1


@interpreted
@pytest.mark.parametrize("cols", [7, 5000])
def test_counts_of_rows_that_do_not_fit(cols: int, monkeypatch: pytest.MonkeyPatch) -> None:
    scores, among = torch.randn(3, cols), torch.rand(3, cols) < 0.5
    counts = torch.tensor([-1, 0, cols])
    kept = mask_ops.topk_rows(scores, counts, among)
    assert not kept[:2].any()
    assert torch.equal(kept[2], among[2])
    monkeypatch.setenv("SPARSEKERN_DEBUG", "1")
    sentence = "Expected counts to be between 0 and the number of candidates of each row"
    for wrong in (counts, counts.clamp(min=0)):
        with pytest.raises(RuntimeError, match=sentence):
            mask_ops.topk_rows(scores, wrong, among)
    assert torch.equal(mask_ops.topk_rows(scores, among.sum(1), among), among)


@pytest.mark.device_code
@pytest.mark.skipif(INTERPRETING, reason="the interpreter compiles nothing")
def test_sizes_beyond_32_bits_compile() -> None:
    """Tensors without storage, of which kernels see numbers that take 64 bits."""
    from tests.kernels.compiled import compile_launch, key_of

    scores = torch.empty(2**31 + 2**20, device="meta")
    among = torch.empty(scores.shape, dtype=torch.bool, device="meta")
    bits = torch.empty(scores.numel() // 8, dtype=torch.uint8, device="meta")
    with recording() as recorded:
        for k in (2**20, 2**31 + 2):
            OPS["mask_topk"].triton(scores, k, among)
        OPS["mask_topk_bits"].triton(scores, 2**20, bits)
        OPS["mask_count"].triton(among)
        OPS["mask_apply_"].triton(scores, bits)
        OPS["mask_unpack_bits"].triton(bits, scores.shape)
        OPS["csr_from_mask"].triton(among.view(2**10, -1), 2**20)
        OPS["mask_topk_rows"].triton(
            scores.view(2**10, -1), torch.empty(2**10, device="meta").long()
        )
    launches = {key_of(launch): launch for launch in recorded}
    assert sum("i64" in key.replace("*i64", "") for key in launches) >= 8
    for key, launch in launches.items():
        assert compile_launch(launch, 90).spilled_bytes == 0, key


@interpreted
def test_a_mask_of_another_count_breaks_no_index(monkeypatch: pytest.MonkeyPatch) -> None:
    mask = torch.rand(70, 90) < 0.2
    for shape in ((70, 90), (70, 10, 3, 3)):
        index = csr.index_from_mask(mask.view(shape))
        before = [tensor.clone() for tensor in index]
        for wrong in (~mask, mask & False, mask | True):
            positions = csr.rebuild_(index, wrong, shape)
            assert all(map(torch.equal, index, before))
            assert torch.equal(positions, torch.arange(index.nnz, dtype=torch.int32))
        with monkeypatch.context() as patch:
            patch.setenv("SPARSEKERN_DEBUG", "1")
            with pytest.raises(RuntimeError, match="^Expected mask to have .* True entries"):
                csr.rebuild_(index, mask | True, shape)
            assert all(map(torch.equal, index, before))


@interpreted
def test_a_wrong_nnz_ends_the_index(monkeypatch: pytest.MonkeyPatch) -> None:
    mask = torch.tensor([[True, False, True], [False, False, False], [False, True, True]])
    crow, col = csr.from_mask(mask, 3)
    assert (crow.tolist(), col.tolist()) == ([0, 2, 2, 3], [0, 2, 1])
    crow, col = csr.from_mask(mask, 6)
    assert (crow.tolist(), col.tolist()) == ([0, 2, 2, 4], [0, 2, 1, 2, 0, 0])
    monkeypatch.setenv("SPARSEKERN_DEBUG", "1")
    with pytest.raises(RuntimeError, match=r"^Expected nnz to be the number .*, 4\. Got 6"):
        csr.from_mask(mask, 6)


@interpreted
def test_tiles_join(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small tiles, so that rows, ranks and sums run over many programs."""
    from sparsekern.kernels.csr import index as index_kernels
    from sparsekern.kernels.csr import rebuild as rebuild_kernels
    from sparsekern.kernels.mask import order, topk

    for module in (index_kernels, rebuild_kernels):
        monkeypatch.setattr(module, "FLAGS", 64)
    monkeypatch.setattr(rebuild_kernels, "NUMBERS", 64)
    monkeypatch.setattr(index_kernels, "ENTRIES", 64)
    monkeypatch.setattr(order, "BLOCK", 1024)
    mask = torch.rand(31, 45) < 0.3
    for shape in ((31, 45), (31, 5, 3, 3)):
        index = csr.index_from_mask(mask.view(shape))
        old, new = csr.CsrIndex(*[t.clone() for t in index]), mask.roll(7, 1)
        positions = csr.rebuild_(index, new, shape)
        crow, col = OPS["csr_from_mask"].reference(new, index.nnz)
        crow_t, col_t, perm = OPS["csr_transpose"].reference(crow, col, 45, 9 if shape[2:] else 1)
        assert all(map(torch.equal, (index.crow, index.col), (crow, col)))
        assert all(map(torch.equal, index[3:6], (crow_t, col_t, perm)))
        right = OPS["csr_position_map"].reference(old.crow, old.col, crow, col)
        assert torch.equal(positions, right)
    monkeypatch.setattr(topk, "BLOCK", 64)
    monkeypatch.setattr(topk, "SMALL", 0)
    scores = torch.randn(900).round(decimals=1)  # 15 tiles, walked by two programs
    for k in (1, 450, 899):
        kept = OPS["mask_topk"].reference(scores, k)
        assert torch.equal(mask_ops.topk(scores, k), kept)
        assert torch.equal(mask_ops.topk_bits(scores, k), mask_ops.pack_bits(kept))
