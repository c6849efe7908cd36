"""Blocks beyond the contract of formats, which sees them as 1 x 1."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sparsekern.formats import FORMATS, BsrFormat
from sparsekern.ops import bsr
from sparsekern.patterns import Block

SHAPES = [((24, 32), (8, 4)), ((24, 32), (1, 16)), ((12, 8, 3, 2), (4, 8)), ((12, 8, 3, 2), (3, 2))]


def make(
    shape: tuple[int, ...], block: tuple[int, int], density: float = 0.4, seed: int = 0
) -> tuple[BsrFormat, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(shape, generator=generator)
    blocks = round(density * weight.numel() / (block[0] * block[1]))
    mask = bsr.block_topk(torch.rand(shape, generator=generator), blocks, block)
    return BsrFormat.from_dense(weight, mask, block_shape=block), weight * mask, mask


@pytest.mark.parametrize(("shape", "block"), SHAPES)
def test_round_trip(shape: Any, block: Any) -> None:
    stored, dense, mask = make(shape, block)
    assert torch.equal(stored.to_dense(), dense)
    assert torch.equal(stored.mask(), mask)
    assert torch.equal(stored.active_values(), dense[mask])
    assert stored.values.shape == (int(mask.sum()) // (block[0] * block[1]), *block)
    assert stored.block_shape == block
    assert stored.pattern == Block(*block)
    stored.validate()


@pytest.mark.parametrize(("shape", "block"), SHAPES)
def test_set_mask_moves_whole_blocks(shape: Any, block: Any) -> None:
    stored, dense, mask = make(shape, block)
    _, _, new = make(shape, block, seed=1)
    pointers = {k: t.data_ptr() for k, t in stored.state_dict().items()}
    state = torch.ones_like(stored.parameter)
    change = stored.set_mask(new)
    assert torch.equal(stored.to_dense(), dense * new)
    assert {k: t.data_ptr() for k, t in stored.state_dict().items()} == pointers
    assert torch.equal(stored.active_values(change.move(state)), (mask & new)[new].float())
    stored.validate()


@pytest.mark.parametrize(("shape", "block"), SHAPES)
def test_a_block_kept_in_part_is_refused(shape: Any, block: Any) -> None:
    stored, dense, mask = make(shape, block)
    broken = mask.clone()
    broken.view(-1)[0] ^= True
    with pytest.raises(ValueError, match="Expected mask to keep or drop whole blocks"):
        stored.set_mask(broken)
    assert torch.equal(stored.to_dense(), dense)
    with pytest.raises(ValueError, match="Expected mask to keep or drop whole blocks"):
        BsrFormat.from_dense(dense, broken, block_shape=block)


@pytest.mark.parametrize(
    ("block", "kind", "sentence"),
    [
        ((5, 8), ValueError, r"Expected blocks of 5 x 8 to divide .* weight of shape \(24, 32\)"),
        ((0, 8), ValueError, "Expected height of a block to be 1 to 128. Got 0"),
        ((8, 129), ValueError, "Expected width of a block to be 1 to 128. Got 129"),
        ((8, 2.0), TypeError, "Expected width of a block to be an integer. Got 2.0"),
    ],
)
def test_bad_blocks(block: Any, kind: type[Exception], sentence: str) -> None:
    weight = torch.randn(24, 32)
    with pytest.raises(kind, match=sentence):
        BsrFormat.from_dense(weight, weight > 0, block_shape=block)


def test_a_block_reaches_over_one_tap_only() -> None:
    """16 divides 3 x 3 x 32 inputs of a filter with 48 channels in all, but not 24 channels."""
    weight = torch.randn(16, 24, 3, 2)
    with pytest.raises(ValueError, match="Expected blocks of 16 x 16 to divide"):
        BsrFormat.from_dense(weight, block_shape=(16, 16))


@pytest.mark.parametrize(
    ("block", "found"), [((16, 16), 16), ((8, 16), 8), ((4, 4), 4), ((2, 8), 2), ((1, 4), 1)]
)
def test_blocks_are_found(block: tuple[int, int], found: int) -> None:
    _, dense, mask = make((32, 64), block, 0.3)
    assert BsrFormat.from_dense(dense, mask).block_shape == (found, found)


def test_checkpoint_brings_its_blocks() -> None:
    source, dense, _ = make((24, 32), (8, 4))
    target, _, _ = make((24, 32), (1, 16), 0.7)
    target.load_state_dict(source.state_dict())
    assert target.block_shape == (8, 4)
    assert torch.equal(target.to_dense(), dense)
    target.validate()


BROKEN = {
    "crow": lambda state: state["crow"].__setitem__(1, 99),
    "col": lambda state: state["col"].__setitem__(0, -1),
    "col_high": lambda state: state["col"].__setitem__(0, 8),
    "block": lambda state: state["block"].__setitem__(0, 4),
    "zero": lambda state: state["block"].__setitem__(0, 0),
    "vector": lambda state: state.__setitem__("values", state["values"].flatten()),
    "shape": lambda state: state.update(
        values=torch.zeros(len(state["col"]), 5, 4), block=torch.tensor([5, 4], dtype=torch.int32)
    ),
}


@pytest.mark.parametrize("what", list(BROKEN))
def test_corrupt_checkpoint_is_refused(what: str) -> None:
    stored, dense, _ = make((24, 32), (8, 4))
    state = {k: v.clone() for k, v in stored.state_dict().items()}
    BROKEN[what](state)
    with pytest.raises(RuntimeError, match=r"Expected (crow|col|values|blocks)"):
        stored.load_state_dict(state)
    assert torch.equal(stored.to_dense(), dense)
    stored.validate()


@pytest.mark.parametrize(
    ("attribute", "sentence"),
    [
        ("crow", "Expected crow to rise"),
        ("col", "Expected col to"),
        ("crow_t", "Expected crow_t to follow"),
        ("col_t", "Expected col_t to follow"),
        ("perm", "Expected perm to follow"),
        ("block", "Expected values to have blocks of the shape in block"),
    ],
)
def test_validate_names_the_broken_invariant(attribute: str, sentence: str) -> None:
    stored, _, _ = make((24, 32), (8, 4))
    getattr(stored, attribute)[-1] += 1000
    with pytest.raises(ValueError, match=sentence):
        stored.validate()


def test_index_of_another_shape() -> None:
    stored, _, _ = make((24, 32), (8, 4))
    values, index = stored.parameter.detach(), stored.index
    for shape, sentence in (
        ((32, 32), r"Expected crow of index to have shape \(5,\). Got \(4,\)"),
        ((24, 36), r"Expected crow_t of index to have shape \(10,\). Got \(9,\)"),
        ((23, 32), "Expected blocks of 8 x 4 to divide"),
    ):
        with pytest.raises(ValueError, match=sentence):
            BsrFormat(values, index, shape)
    with pytest.raises(ValueError, match="Expected values to have shape"):
        BsrFormat(values[1:], index, (24, 32))
    with pytest.raises(ValueError, match="Expected values to have 3 dimensions"):
        BsrFormat(values.flatten(), index, (24, 32))
    with pytest.raises(ValueError, match="Expected perm of index to have shape"):
        BsrFormat(values, index._replace(perm=index.perm[1:]), (24, 32))
    with pytest.raises(TypeError, match="Expected index to be a BsrIndex. Got tuple"):
        BsrFormat(values, tuple(index), (24, 32))


@pytest.mark.parametrize("block", [(8, 4), (16, 16)])
def test_linear_and_gradients(block: tuple[int, int]) -> None:
    stored, dense, mask = make((32, 48), block)
    weight = dense.clone().requires_grad_()
    x = torch.randn(20, 48, requires_grad=True)
    other = x.detach().clone().requires_grad_()
    stored.arm_dense_grad()
    stored.linear(x).square().sum().backward()
    F.linear(other, weight).square().sum().backward()
    torch.testing.assert_close(x.grad, other.grad, rtol=1e-4, atol=1e-4)
    gradient = stored.active_values(stored.parameter.grad)
    torch.testing.assert_close(gradient, weight.grad[mask], rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(stored.take_dense_grad(), weight.grad, rtol=1e-4, atol=1e-3)


def test_like_keeps_the_blocks() -> None:
    stored, dense, mask = make((24, 32), (4, 4), 1.0)
    assert bool(mask.all())
    assert stored.like(dense, mask).block_shape == (4, 4)
    assert BsrFormat.from_dense(dense, mask).block_shape == (8, 8)


def test_bytes_and_words() -> None:
    stored, _, _ = make((32, 32), (16, 16), 0.5)
    assert stored.nbytes.weight == 2 * 16 * 16 * 4
    assert stored.nbytes.index == 4 * (2 * 3 + 3 * 2)
    assert "block_shape=(16, 16)" in repr(stored)
    assert copy.deepcopy(stored).block_shape == (16, 16)
    assert FORMATS["bsr"] is BsrFormat
    assert isinstance(stored.index, bsr.BsrIndex)
