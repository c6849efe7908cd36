"""The contract of every format, over everything that is registered."""

from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from sparsekern.formats import FORMATS, SparseFormat
from sparsekern.nn import SparseLinear
from sparsekern.ops import mask as mask_ops
from sparsekern.ops.csr import CsrIndex

NAMES = list(FORMATS)


def make(
    name: str, rows: int = 6, cols: int = 9, density: float = 0.4
) -> tuple[SparseFormat, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(rows, cols, generator=generator)
    mask = held_mask(name, torch.rand(rows, cols, generator=generator), density)
    return FORMATS[name].from_dense(weight, mask), weight * mask, mask


def held_mask(name: str, noise: Tensor, density: float) -> Tensor:
    """A random mask that the format can hold, from numbers uniform in [0, 1)."""
    if name == "condensed":
        return mask_ops.topk_rows(noise, round(density * noise.shape[1]))
    return noise < density


@pytest.mark.parametrize("name", NAMES)
def test_round_trip_is_exact(name: str) -> None:
    stored, dense, mask = make(name)
    assert torch.equal(stored.to_dense(), dense)
    assert torch.equal(stored.mask(), mask)
    assert stored.nnz == int(mask.sum())
    assert stored.density == pytest.approx(stored.nnz / 54)
    assert torch.equal(stored.active_values(), dense[mask])
    stored.validate()


@pytest.mark.parametrize("name", NAMES)
def test_mask_among_the_kept(name: str) -> None:
    stored, dense, mask = make(name)
    assert torch.equal(stored.mask(stored.active_values() > 0), dense > 0)
    assert torch.equal(stored.mask(stored.active_values() < 9), mask)


@pytest.mark.parametrize("name", NAMES)
def test_a_packed_mask_is_as_good(name: str) -> None:
    """Of equal and of another count; bits behind the last element mean nothing."""
    for rows, cols in ((6, 9), (8, 16)):
        for change in (torch.Tensor.flip, torch.Tensor.fliplr, torch.zeros_like):
            (one, _, mask), (other, _, _) = make(name, rows, cols), make(name, rows, cols)
            new = change(mask, 0) if change is torch.Tensor.flip else change(mask)
            bits = mask_ops.pack_bits(new)
            if rows * cols % 8:
                bits[-1] |= 0xC0
            state = torch.randn(one.parameter.shape)
            changes = one.set_mask(new), other.set_mask(bits)
            assert torch.equal(other.to_dense(), one.to_dense())
            assert torch.equal(other.mask(), new)
            assert torch.equal(changes[0].move(state), changes[1].move(state))
            other.validate()


@pytest.mark.parametrize("name", NAMES)
def test_default_mask_is_nonzero(name: str) -> None:
    _, dense, mask = make(name)
    assert torch.equal(FORMATS[name].from_dense(dense).mask(), mask)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kept", [False, True])
def test_empty_and_full_masks(name: str, kept: bool) -> None:
    stored = FORMATS[name].from_dense(torch.ones(3, 4), torch.full((3, 4), kept))
    assert stored.density == float(kept)
    y = stored.linear(torch.ones(2, 4))
    assert torch.equal(y, torch.full((2, 3), 4.0 * kept))
    stored.validate()


@pytest.mark.parametrize("name", NAMES)
def test_linear_and_gradients_equal_dense(name: str) -> None:
    stored, dense, mask = make(name)
    x = torch.randn(5, 9, requires_grad=True)
    x2 = x.detach().clone().requires_grad_()
    weight = dense.clone().requires_grad_()
    bias, bias2 = torch.randn(6, requires_grad=True), None
    bias2 = bias.detach().clone().requires_grad_()
    out, right = stored.linear(x, bias), nn.functional.linear(x2, weight, bias2)
    torch.testing.assert_close(out, right)
    out.sin().sum().backward(), right.sin().sum().backward()
    torch.testing.assert_close(x.grad, x2.grad)
    torch.testing.assert_close(bias.grad, bias2.grad)
    gradient = stored.parameter.grad
    torch.testing.assert_close(stored.active_values(gradient), weight.grad[mask])
    if gradient.shape == weight.shape:
        assert (gradient[~mask] == 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_to_dense_is_differentiable(name: str) -> None:
    stored, _, mask = make(name)
    (stored.to_dense() * torch.arange(54.0).view(6, 9)).sum().backward()
    expected = torch.arange(54.0).view(6, 9)[mask]
    assert torch.equal(stored.active_values(stored.parameter.grad), expected)


@pytest.mark.parametrize("name", NAMES)
def test_set_mask_moves_values(name: str) -> None:
    """Kept weights keep their value, grown ones are zero; state moves the same way."""
    stored, dense, mask = make(name)
    new = mask.flip(1)
    state = torch.ones_like(stored.parameter)
    change = stored.set_mask(new)
    assert torch.equal(stored.to_dense(), dense * new)
    assert torch.equal(stored.mask(), new)
    stored.validate()
    moved = change.move(state)
    assert torch.equal(stored.active_values(moved), (mask & new)[new].float())
    for dtype in (torch.float32, torch.bfloat16, torch.int64, torch.complex128):
        in_place = state.to(dtype, copy=True)
        change.move_(in_place)
        assert torch.equal(in_place, moved.to(dtype))


@pytest.mark.parametrize("name", NAMES)
def test_equal_count_changes_in_place(name: str) -> None:
    """No tensor moves in memory, so neither compiled code nor a CUDA graph notices."""
    stored, _, mask = make(name, 40, 60, 0.1)
    pointers = {k: t.data_ptr() for k, t in stored.named_buffers()}
    parameter, pointer = stored.parameter, stored.parameter.data_ptr()
    stored.set_mask(mask.flip(0))
    assert stored.parameter is parameter
    assert parameter.data_ptr() == pointer
    assert {k: t.data_ptr() for k, t in stored.named_buffers()} == pointers


@pytest.mark.parametrize("name", NAMES)
def test_other_count_is_possible(name: str) -> None:
    stored, dense, mask = make(name)
    new = held_mask(name, torch.rand(6, 9), 0.8)
    stored.set_mask(new)
    assert torch.equal(stored.to_dense(), dense * new)
    assert stored.nnz == int(new.sum()) != int(mask.sum())
    stored.validate()


@pytest.mark.parametrize("name", NAMES)
def test_dense_gradient_adds_up_and_is_freed(name: str) -> None:
    stored, dense, _ = make(name)
    assert stored.take_dense_grad() is None
    stored.arm_dense_grad()
    assert stored.take_dense_grad() is None
    stored.arm_dense_grad()
    xs = [torch.randn(4, 9) for _ in range(2)]
    expected = torch.zeros(6, 9)
    for x in xs:
        stored.linear(x).square().sum().backward()
        expected += 2 * (x @ dense.t()).t() @ x
    torch.testing.assert_close(stored.take_dense_grad(), expected)
    assert stored.take_dense_grad() is None


COPIES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda module: pickle.loads(pickle.dumps(module)),
    "to": lambda module: copy.deepcopy(module).to(torch.float32),
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("how", list(COPIES))
def test_copies_are_independent(name: str, how: str) -> None:
    stored, dense, _ = make(name)
    copied = COPIES[how](stored)
    copied.validate()
    with torch.no_grad():
        stored.parameter.zero_()
    assert torch.equal(copied.to_dense(), dense)
    x = torch.randn(2, 9)
    torch.testing.assert_close(copied.linear(x), x @ dense.t())


@pytest.mark.parametrize("name", NAMES)
def test_double_precision(name: str) -> None:
    stored, dense, _ = make(name)
    stored = stored.double()
    assert stored.linear(torch.randn(2, 9, dtype=torch.float64)).dtype == torch.float64
    assert torch.equal(stored.to_dense(), dense.double())


@pytest.mark.parametrize("name", NAMES)
def test_state_dict_across_topologies(name: str) -> None:
    """A checkpoint brings its topology with it, also with another number of kept weights."""
    source, dense, mask = make(name)
    for density in (0.4, 0.8):
        other = held_mask(name, torch.rand(6, 9), density)
        target = FORMATS[name].from_dense(torch.zeros(6, 9), other)
        target.load_state_dict(source.state_dict())
        assert torch.equal(target.to_dense(), dense)
        assert torch.equal(target.mask(), mask)
        target.validate()
        x = torch.randn(3, 9)
        assert torch.equal(target.linear(x), source.linear(x))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("other", NAMES)
def test_other_format_is_refused_by_name(name: str, other: str) -> None:
    if name == other:
        pytest.skip("the same format")
    target, before, _ = make(name)
    with pytest.raises(RuntimeError, match=f"to be of format '{name}' with keys"):
        target.load_state_dict(make(other)[0].state_dict())
    assert torch.equal(target.to_dense(), before)
    target.validate()


@pytest.mark.parametrize("name", NAMES)
def test_other_version_is_refused(name: str) -> None:
    stored, dense, _ = make(name)
    state = stored.state_dict()
    state["version"] = torch.tensor(99, dtype=torch.int32)
    with pytest.raises(RuntimeError, match=r"version to be 1\. Got 99"):
        stored.load_state_dict(state)
    assert torch.equal(stored.to_dense(), dense)


@pytest.mark.parametrize(
    ("name", "attribute", "sentence"),
    [
        ("csr", "crow", "Expected crow to rise"),
        ("csr", "col", "Expected col to"),
        ("csr", "crow_t", "Expected crow_t to follow"),
        ("csr", "col_t", "Expected col_t to follow"),
        ("csr", "perm", "Expected perm to follow"),
        ("csr", "starts", "Expected starts to follow"),
        ("csr", "starts_t", "Expected starts_t to follow"),
        ("condensed", "crow", "Expected crow to follow from col"),
        ("condensed", "col", "Expected col to"),
        ("condensed", "perm", "Expected perm to follow from col"),
        ("masked", "weight", "Expected weight to be zero outside"),
        ("masked", "bits", "Expected (weight to be zero outside|the unused bits|nnz)"),
        *[
            ("masked", name, f"Expected {name} to follow from the mask")
            for name in CsrIndex._fields
        ],
    ],
)
def test_validate_names_the_broken_invariant(name: str, attribute: str, sentence: str) -> None:
    stored, _, mask = make(name)
    broken = getattr(stored, attribute)
    with torch.no_grad():
        if attribute == "weight":
            broken[~mask] = 1.0
        elif attribute == "bits":
            broken[-1] = 255
        else:
            broken[-1 if attribute != "col" else 0] += 1000
            if "starts" in attribute:
                broken[0] += 1
    with pytest.raises(ValueError, match=sentence):
        stored.validate()


def test_masked_csr_kernel_and_rule() -> None:
    """A dense master runs the csr kernel at low density and dense matmul at high density."""
    weight = torch.randn(64, 64)
    sparse_mask = torch.rand(64, 64) < 0.1
    stored = FORMATS["masked"].from_dense(weight, torch.ones(64, 64, dtype=torch.bool))
    assert stored.index is None
    stored.set_mask(sparse_mask)
    assert stored.index is not None
    stored.validate()
    x = torch.randn(3, 64)
    torch.testing.assert_close(stored.linear(x), x @ (weight * sparse_mask).t())
    stored.linear(x).sum().backward()
    assert (stored.parameter.grad[~sparse_mask] == 0).all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("mask", "kind", "sentence"),
    [
        (torch.ones(6, 8, dtype=torch.bool), ValueError, "Expected mask to have shape"),
        (torch.ones(6, 9), TypeError, "Expected mask to have dtype torch.bool"),
        (
            torch.ones(6, 9, dtype=torch.bool, device="meta"),
            ValueError,
            "Expected mask to be on cpu like weight. Got meta",
        ),
        ([[True] * 9] * 6, TypeError, "Expected mask to be a tensor. Got list"),
        (0, TypeError, "Expected mask to be a tensor. Got int"),
    ],
)
def test_bad_masks(name: str, mask: Any, kind: type[Exception], sentence: str) -> None:
    stored, dense, before = make(name)
    with pytest.raises(kind, match=sentence):
        stored.set_mask(mask)
    assert torch.equal(stored.mask(), before)
    with pytest.raises(kind, match=sentence):
        FORMATS[name].from_dense(dense, mask)
    for format in (name, "auto"):
        with pytest.raises(kind, match=sentence):
            SparseLinear.from_dense(nn.Linear(9, 6), mask=mask, format=format)


@pytest.mark.parametrize("name", NAMES)
def test_bad_packed_masks(name: str) -> None:
    stored, _, before = make(name)
    bits = mask_ops.pack_bits(before)
    with pytest.raises(ValueError, match=r"Expected mask to have shape \(7,\). Got \(6,\)"):
        stored.set_mask(bits[:-1])
    with pytest.raises(ValueError, match="Expected mask to be on cpu like weight. Got meta"):
        stored.set_mask(bits.to("meta"))
    assert torch.equal(stored.mask(), before)


@pytest.mark.parametrize("name", NAMES)
def test_set_mask_needs_one(name: str) -> None:
    with pytest.raises(TypeError, match="Expected mask to be a tensor. Got NoneType"):
        make(name)[0].set_mask(None)


@pytest.mark.parametrize("name", NAMES)
def test_compiles_once_over_ten_topologies(name: str) -> None:
    """Changes of equal count cause no recompilation."""
    torch._dynamo.reset()
    stored, _, mask = make(name, 32, 48, 0.1)
    layer = SparseLinear.from_format(stored)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layer, backend=counter, fullgraph=True)
    x = torch.randn(4, 48)
    compiled(x)
    for step in range(10):
        mask = mask.roll((1, step + 1), (0, 1))
        stored.set_mask(mask)
        torch.testing.assert_close(compiled(x), x @ layer.weight.t())
    assert counter.frame_count == 1


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [None, "x", 1.0, [1]])
def test_state_that_is_no_tensor(name: str, value: Any) -> None:
    stored, dense, _ = make(name)
    for key, own in stored.state_dict().items():
        state = {**stored.state_dict(), key: value}
        with pytest.raises(RuntimeError, match=f"Expected {key} to be a tensor. Got "):
            stored.load_state_dict(state)
        assert torch.equal(stored.state_dict()[key], own)
    assert torch.equal(stored.to_dense(), dense)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("version", [torch.tensor(2), torch.tensor([1, 1]), torch.tensor([])])
def test_state_of_another_version(name: str, version: Tensor) -> None:
    stored, _, _ = make(name)
    sentence = f"Expected version to be 1. Got {version.tolist()}, written by another"
    with pytest.raises(RuntimeError, match=re.escape(sentence)):
        stored.load_state_dict({**stored.state_dict(), "version": version})
