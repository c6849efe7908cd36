"""csr_linear: a case worked by hand, and what the contract suite does not ask."""

from __future__ import annotations

import itertools

import pytest
import torch

from sparsekern._extension import native
from sparsekern.ops import csr

needs_native = pytest.mark.skipif(not native.loaded, reason="no native library")


def hand_case() -> tuple[torch.Tensor, torch.Tensor, csr.CsrIndex, torch.Tensor]:
    """W = [[0, 2, 0], [1, 0, 3]], x = [[1, 1, 1], [0, 10, 100]], bias = [0.5, -1]."""
    mask = torch.tensor([[False, True, False], [True, False, True]])
    x = torch.tensor([[1.0, 1, 1], [0, 10, 100]])
    return x, torch.tensor([2.0, 1, 3]), csr.index_from_mask(mask), torch.tensor([0.5, -1])


@pytest.mark.parametrize("variant", ["auto", "dense", "reference"])
def test_by_hand(variant: str) -> None:
    x, values, index, bias = hand_case()
    x.requires_grad_(), values.requires_grad_(), bias.requires_grad_()
    y = csr.linear(x, values, index, bias, variant=variant)
    assert y.tolist() == [[2.5, 3.0], [20.5, 299.0]]
    y.backward(torch.tensor([[1.0, 0], [0, 2]]))
    assert x.grad.tolist() == [[0, 2, 0], [2, 0, 6]]
    assert values.grad.tolist() == [1, 0, 200]
    assert bias.grad.tolist() == [1, 2]


def test_index_by_hand() -> None:
    _, _, index, _ = hand_case()
    assert index.crow.tolist() == [0, 1, 3]
    assert index.col.tolist() == [1, 0, 2]
    assert index.crow_t.tolist() == [0, 1, 2, 3]
    assert index.col_t.tolist() == [1, 0, 1]
    assert index.perm.tolist() == [1, 0, 2]


def test_probe_receives_the_dense_gradient() -> None:
    x, values, index, _ = hand_case()
    values.requires_grad_()
    probe = torch.zeros(()).expand(2, 3).requires_grad_()
    csr.linear(x, values, index, probe=probe).backward(torch.tensor([[1.0, 0], [0, 2]]))
    assert probe.grad.tolist() == [[1, 1, 1], [0, 20, 200]]
    assert values.grad.tolist() == [1, 0, 200]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_values_are_widened(dtype: torch.dtype) -> None:
    x, values, index, bias = hand_case()
    values = values.to(dtype).requires_grad_()
    y = csr.linear(x.to(dtype), values, index, bias.to(dtype))
    assert y.dtype == dtype
    y.sum().backward()
    assert values.grad.dtype == dtype


def test_second_derivative_is_refused() -> None:
    x, values, index, _ = hand_case()
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(
        csr.linear(x, values, index).square().sum(), x, create_graph=True
    )
    with pytest.raises(
        NotImplementedError, match="Expected no gradient through csr_linear_backward"
    ):
        gradient.sum().backward()


@needs_native
def test_values_and_gradients_travel_as_in_dense() -> None:
    """NaN and infinity reach exactly the outputs that use them."""
    x, values, index, bias = hand_case()
    x[0, 1] = float("nan")
    values[2] = float("inf")
    y = csr.linear(x, values, index, bias)
    assert y[0].isnan().tolist() == [True, False]
    assert y[1, 1] == float("inf")


@needs_native
@pytest.mark.parametrize(("batch", "rows", "cols"), [(200, 1030, 1100), (70, 2100, 130)])
def test_many_blocks_and_panels_bitwise(batch: int, rows: int, cols: int) -> None:
    """Several tiles, row blocks and panels: the same bits for any number of threads."""
    generator = torch.Generator().manual_seed(1)
    mask = torch.rand(rows, cols, generator=generator) < 0.06
    index = csr.index_from_mask(mask)
    x = torch.randn(batch, cols, generator=generator, requires_grad=True)
    values = torch.randn(index.nnz, generator=generator, requires_grad=True)
    grad = torch.randn(batch, rows, generator=generator)
    dense = torch.zeros(rows, cols, dtype=torch.float64)
    dense[mask] = values.detach().double()
    results = []
    for threads in (1, 2, 3, 8):
        torch.set_num_threads(threads)
        y = csr.linear(x, values, index)
        results.append((y.detach(), *torch.autograd.grad(y, (x, values), grad)))
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], result, strict=True))
    y, dx, dvalues = results[0]
    torch.testing.assert_close(y.double(), x.detach().double() @ dense.t(), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(dx.double(), grad.double() @ dense, atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(
        dvalues.double(), (grad.double().t() @ x.detach().double())[mask], atol=1e-3, rtol=1e-4
    )


@needs_native
def test_index_of_another_matrix_is_refused() -> None:
    """Native code never walks an index that does not belong to the matrix."""
    x, values, index, _ = hand_case()
    other = csr.index_from_mask(
        torch.tensor([[True, True, False, False], [False, True, False, False]])
    )
    with pytest.raises(RuntimeError, match=r"Expected panel starts (to have|of a \[2, 3\] matrix)"):
        csr.linear(x, values, index._replace(starts=other.starts))


@needs_native
@pytest.mark.parametrize(
    ("crow", "col", "sentence"),
    [
        ([0, 1, 3], [1, 0, 3], "Expected col to"),
        ([0, 1, 3], [1, 0, -1], "Expected col to"),
        ([0, 3, 2], [1, 0, 2], "Expected crow"),
        ([0, 2, 4], [1, 0, 2], "Expected crow to run from 0 to 3"),
    ],
)
def test_broken_rows_are_refused(crow: list[int], col: list[int], sentence: str) -> None:
    tensors = torch.tensor(crow, dtype=torch.int32), torch.tensor(col, dtype=torch.int32)
    with pytest.raises(RuntimeError, match=sentence):
        csr.panel_starts(*tensors, 3)
    with pytest.raises(RuntimeError, match=sentence):
        csr.transpose(*tensors, 3)


def test_strided_inputs_are_not_changed() -> None:
    """Views go in, their storage stays as it was."""
    x, values, index, bias = hand_case()
    storage = torch.cat([x, x], 1)
    before = storage.clone()
    view = storage[:, 1:4]
    expected = csr.linear(view.contiguous(), values, index, bias)
    assert torch.equal(csr.linear(view, values, index, bias), expected)
    assert torch.equal(storage, before)


def test_pieces_of_a_batch_equal_the_whole() -> None:
    """Every tile width (64, 32, 16, one and tails) computes the same rows, to rounding.

    Not to the bit: the fewer vectors a tile has, the more sums take turns.
    """
    generator = torch.Generator().manual_seed(2)
    mask = torch.rand(40, 90, generator=generator) < 0.2
    index = csr.index_from_mask(mask)
    values = torch.randn(index.nnz, generator=generator)
    x = torch.randn(100, 90, generator=generator)
    whole = csr.linear(x, values, index)
    for start, stop in itertools.pairwise((0, 1, 17, 50, 100)):
        piece = csr.linear(x[start:stop], values, index)
        torch.testing.assert_close(piece, whole[start:stop], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("activation", ["none", "relu"])
@pytest.mark.parametrize(
    ("batch", "rows", "cols", "density"),
    [
        (256, 70, 90, 0.4),
        (300, 1100, 130, 0.1),
        (397, 33, 1500, 0.2),
        (530, 300, 280, 0.3),
        (128, 90, 70, 0.3),
        (255, 60, 50, 0.9),
        (300, 900, 900, 0.02),
    ],
)
def test_wide_tiles_and_joint_gradients(
    batch: int, rows: int, cols: int, density: float, activation: str, dtype: torch.dtype
) -> None:
    """Batches whose tiles are as wide as the machine has registers for, dx and dvalues together."""
    generator = torch.Generator().manual_seed(3)
    mask = torch.rand(rows, cols, generator=generator) < density
    mask[:, 5] = False
    mask[7] = False
    index = csr.index_from_mask(mask)
    values = (torch.randn(index.nnz, generator=generator) / 8).requires_grad_()
    bias = torch.randn(rows, generator=generator, requires_grad=True)
    x = torch.randn(batch, cols, generator=generator).to(dtype).requires_grad_()
    grad = torch.randn(batch, rows, generator=generator).to(dtype)

    def run() -> tuple[torch.Tensor, ...]:
        y = csr.linear(x, values, index, bias, activation=activation)
        return y, *torch.autograd.grad(y, (x, values, bias), grad)

    y, dx, dvalues, dbias = run()
    weight = csr.to_dense(values.detach(), index.crow, index.col, cols).double()
    right = x.detach().double() @ weight.t() + bias.detach().double()
    gate = torch.ones_like(right)
    if activation == "relu":
        gate = (y > 0).double()
        right = right.clamp(min=0)
    gated = grad.double() * gate
    loose = (
        {"rtol": 1e-2, "atol": 1e-2} if dtype == torch.bfloat16 else {"rtol": 1e-4, "atol": 1e-4}
    )
    torch.testing.assert_close(y.double(), right, **loose)
    torch.testing.assert_close(dx.double(), gated @ weight, **loose)
    dweight = gated.t() @ x.detach().double()
    torch.testing.assert_close(dvalues.double(), dweight[mask], rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(dbias.double(), gated.sum(0), rtol=1e-4, atol=1e-4)
    threads = torch.get_num_threads()
    for other in (1, 3):
        torch.set_num_threads(other)
        try:
            assert all(
                torch.equal(a, b) for a, b in zip(run(), (y, dx, dvalues, dbias), strict=True)
            )
        finally:
            torch.set_num_threads(threads)


@pytest.mark.skipif(native.isa != "avx512", reason="narrower bodies take dx and dvalues apart")
@pytest.mark.parametrize("name", ["perm", "col_t"])
@pytest.mark.parametrize("wrong", [-1, 10**6])
def test_joint_gradients_write_nothing_outside(name: str, wrong: int) -> None:
    """dvalues is scattered through the index, which is checked outside of debug mode, too."""
    mask = torch.rand(60, 50, generator=torch.Generator().manual_seed(4)) < 0.9
    index = csr.index_from_mask(mask)
    broken = index._replace(**{name: getattr(index, name).clone()})
    getattr(broken, name)[17] = wrong
    values = torch.randn(index.nnz, requires_grad=True)
    x = torch.randn(300, 50, requires_grad=True)
    with pytest.raises(RuntimeError, match=r"Expected .* Got "):
        csr.linear(x, values, broken).sum().backward()
