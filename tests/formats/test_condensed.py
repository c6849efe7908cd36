"""``condensed``: constant fan-in, only the columns stored."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import profile

import sparsekern as sk
from sparsekern._extension import native
from sparsekern.formats import FORMATS, CondensedFormat, CsrFormat
from sparsekern.ops import condensed, csr
from sparsekern.ops import mask as mask_ops
from sparsekern.patterns import FanIn

SENTENCE = "Expected mask to keep the same number of weights in every row. Got"


def make(
    shape: tuple[int, ...] = (6, 9), fan_in: int = 4
) -> tuple[CondensedFormat, Tensor, Tensor]:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(5))
    mask = mask_ops.topk_rows(weight.abs(), fan_in)
    return CondensedFormat.from_dense(weight, mask), weight * mask, mask


def test_only_values_and_columns_are_stored() -> None:
    stored, dense, mask = make()
    state = stored.state_dict()
    assert set(state) == {"version", "values", "col"}
    assert state["col"].shape == (6, 4)
    assert state["col"].dtype == torch.int32
    assert torch.equal(state["values"].view(6, 4), dense[mask].view(6, 4))
    assert torch.equal(dense.gather(1, state["col"].long()).flatten(), state["values"])
    assert torch.equal(stored.crow, torch.arange(0, 25, 4, dtype=torch.int32))
    assert stored.pattern == FanIn()
    assert "fan_in=4" in repr(stored)
    assert FORMATS["condensed"] is CondensedFormat
    assert copy.deepcopy(stored).fan_in == stored.fan_in == 4


@pytest.mark.parametrize("shape", [(6, 9), (6, 3, 2, 2)])
@pytest.mark.parametrize("packed", [False, True])
def test_uneven_masks_change_nothing(shape: tuple[int, ...], packed: bool) -> None:
    """Of another count, and of the same count in all."""
    stored, dense, mask = make(shape)
    more, moved = mask.clone(), mask.clone()
    more.flatten(1)[0] = True
    moved.flatten(1)[:2] = False
    moved.flatten(1)[0, :8] = True
    assert moved.sum() == mask.sum()
    for uneven in (more, moved):
        with pytest.raises(ValueError, match=SENTENCE):
            stored.set_mask(mask_ops.pack_bits(uneven) if packed else uneven)
        with pytest.raises(ValueError, match=SENTENCE):
            CondensedFormat.from_dense(dense, uneven)
        assert torch.equal(stored.to_dense(), dense)
        stored.validate()


@pytest.mark.parametrize("fan_in", [0, 1, 9])
def test_another_fan_in(fan_in: int) -> None:
    stored, dense, _ = make()
    new = mask_ops.topk_rows(dense, fan_in)
    change = stored.set_mask(new)
    assert stored.fan_in == fan_in
    assert stored.col.shape == (6, fan_in)
    assert torch.equal(stored.to_dense(), dense * new)
    assert change.positions is not None
    assert len(change.positions) == 6 * fan_in
    stored.validate()


@pytest.mark.parametrize("fan_in", [2, 4, 7])
def test_checkpoint_brings_its_fan_in(fan_in: int) -> None:
    source, dense, _ = make(fan_in=fan_in)
    target, _, _ = make()
    target.load_state_dict(source.state_dict())
    assert target.fan_in == fan_in
    assert torch.equal(target.to_dense(), dense)
    target.validate()
    x = torch.randn(3, 9)
    assert torch.equal(target.linear(x), source.linear(x))


BROKEN = {
    "low": lambda state: state["col"][0].__setitem__(0, -1),
    "high": lambda state: state["col"][-1].__setitem__(-1, 9),
    "repeated": lambda state: state["col"][2].__setitem__(1, int(state["col"][2, 0])),
    "unsorted": lambda state: state.update(col=state["col"].flip(1)),
    "vector": lambda state: state.update(col=state["col"].flatten()),
    "rows": lambda state: state.update(col=state["col"].view(8, 3)),
    "fewer": lambda state: state.update(col=state["col"][:, :3]),
    "int64": lambda state: state.update(col=state["col"].long()),
    "matrix": lambda state: state.update(values=state["values"].view(6, 4)),
}


@pytest.mark.parametrize("what", list(BROKEN))
def test_corrupt_checkpoint_is_refused(what: str) -> None:
    stored, dense, _ = make()
    state = {k: v.clone() for k, v in stored.state_dict().items()}
    BROKEN[what](state)
    with pytest.raises(RuntimeError, match=r"Expected (col|crow and col|values) to (be|have|rise)"):
        stored.load_state_dict(state)
    assert torch.equal(stored.to_dense(), dense)
    stored.validate()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda col: col[0].fill_(1), "Expected col to rise strictly within each row"),
        (lambda col: col.copy_(col.flip(1)), "Expected col to rise strictly within each row"),
        (lambda col: col.add_(9), r"Expected col to be in \[0, 9\)"),
    ],
)
def test_validate_refuses_columns(change: Any, sentence: str) -> None:
    stored, _, _ = make()
    change(stored.col)
    with pytest.raises(ValueError, match=sentence):
        stored.validate()


def test_a_broken_index_is_refused_by_the_constructor() -> None:
    mask = torch.ones(4, 5, dtype=torch.bool).tril()
    index = csr.index_from_mask(mask)
    with pytest.raises(ValueError, match=f"{SENTENCE} 1 to 4"):
        CondensedFormat(torch.ones(index.nnz), index, (4, 5))


@pytest.mark.parametrize("batch", [1, 2, 8, 15, 16, 17, 100])
@pytest.mark.parametrize("fan_in", [0, 1, 3, 8, 33, 70])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_training_has_the_bits_of_csr(batch: int, fan_in: int, dtype: torch.dtype) -> None:
    """Linear layers and their gradients; without gradients, also from kernels of its own."""
    stored, dense, mask = make((37, 70), fan_in)
    other = CsrFormat.from_dense(dense, mask)
    kind = torch.float64 if dtype == torch.float64 else torch.float32
    results = []
    for format in (stored.to(kind), other.to(kind)):
        x = torch.linspace(-2, 3, batch * 70, dtype=kind).view(batch, 70).to(dtype)
        bias = torch.linspace(-1, 1, 37, dtype=kind, requires_grad=True)
        format.arm_dense_grad()
        x.requires_grad_()
        y = format.linear(x, bias)
        y.square().sum().backward()
        gradients = [x.grad, bias.grad, format.parameter.grad, format.take_dense_grad()]
        results.append([y, *gradients])
        with torch.no_grad():
            torch.testing.assert_close(format.linear(x, bias), y)
    for one, right in zip(*results, strict=True):
        assert torch.equal(one, right)


def ops_of(stored: CondensedFormat, x: Tensor) -> set[str]:
    with profile() as found:
        stored.linear(x)
    keys = {event.key for event in found.key_averages()}
    return {name for name in ("csr_linear", "condensed_linear") if f"sparsekern::{name}" in keys}


@pytest.mark.skipif(not native.loaded, reason="its own kernels are native")
def test_small_batches_without_gradients_run_their_own_kernels() -> None:
    stored, dense, _ = make((20, 30), 3)
    few, many = torch.randn(2, 8, 30), torch.randn(17, 30)
    assert ops_of(stored, few) == {"csr_linear"}
    with torch.no_grad():
        assert ops_of(stored, few) == {"condensed_linear"}
        assert ops_of(stored, many) == {"csr_linear"}
        torch.testing.assert_close(stored.linear(few), F.linear(few, dense))
        compiled = torch.compile(stored.linear, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(few), F.linear(few, dense))
        stored.variant = "dense"
        assert "condensed_linear" not in ops_of(stored, few)
        for bad, kind in ((torch.randn(2, 29), ValueError), (None, TypeError)):
            for variant in ("auto", "dense"):
                stored.variant = variant
                with pytest.raises(kind, match="Expected x to"):
                    stored.linear(bad)


def test_bytes() -> None:
    stored, _, _ = make((32, 64), 8)
    other = CsrFormat.from_dense(stored.to_dense())
    assert stored.nbytes == other.nbytes
    written = sum(t.nbytes for t in stored.state_dict().values())
    assert written == 32 * 8 * (4 + 4) + 4


def test_fan_in_of_a_mask() -> None:
    assert condensed.fan_in(torch.ones(3, 2, 2, 2, dtype=torch.bool)) == 8
    assert condensed.fan_in(torch.ones(0, 4, dtype=torch.bool)) == 0
    assert condensed.fan_in(torch.ones(4, 0, dtype=torch.bool)) == 0
    with pytest.raises(ValueError, match=f"{SENTENCE} 0 to 1"):
        condensed.fan_in(torch.eye(4, 3, dtype=torch.bool))
    with pytest.raises(TypeError, match="Expected mask to be a tensor. Got int"):
        condensed.fan_in(3)


def test_a_layer_of_no_outputs() -> None:
    stored = CondensedFormat.from_dense(torch.zeros(0, 5))
    assert (stored.fan_in, stored.nnz) == (0, 0)
    assert stored.linear(torch.zeros(2, 5)).shape == (2, 0)
    assert sk.nn.SparseLinear.from_format(stored).density == 1.0
