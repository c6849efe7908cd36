"""Activations inside of csr_linear: accuracy, borders, gradients, compile."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sparsekern._extension import native
from sparsekern.ops import OPS, csr

ACTIVATIONS = {
    "relu": torch.relu,
    "gelu": F.gelu,
    "gelu_tanh": lambda z: F.gelu(z, approximate="tanh"),
}
FUSED = list(ACTIVATIONS)
needs_native = pytest.mark.skipif(not native.loaded, reason="no native library")


def through_identity(x: Tensor, activation: str) -> Tensor:
    """The activation alone: the matrix is 16 columns of one, so that a row of ``x`` passes through
    whole vectors, remainders (19 outputs) and the loop of a single vector."""
    index = csr.index_from_mask(torch.eye(19, dtype=torch.bool))
    values = torch.ones(19, dtype=torch.float64 if x.dtype == torch.float64 else torch.float32)
    rows = F.pad(x, (0, -x.numel() % 19)).view(-1, 19)
    with torch.no_grad():
        batches = csr.linear(rows, values, index, activation=activation)
        single = [csr.linear(row, values, index, activation=activation) for row in rows[:200]]
    torch.testing.assert_close(batches[:200], torch.stack(single), rtol=0, atol=0, equal_nan=True)
    return batches.flatten()[: x.numel()]


def exact(x: Tensor, activation: str) -> Tensor:
    """In float64, by erfc, which keeps its relative precision in the tail."""
    z = x.double()
    if activation == "gelu":
        return 0.5 * z * torch.special.erfc(-z / math.sqrt(2))
    return ACTIVATIONS[activation](z)


@needs_native
@pytest.mark.parametrize("activation", FUSED)
def test_accuracy_in_float32(activation: str) -> None:
    x = torch.cat([torch.linspace(-20, 20, 100_003), torch.linspace(-1e-3, 1e-3, 2_001)])
    y = through_identity(x, activation)
    right = exact(x, activation)
    assert ((y.double() - right).abs() / right.abs().clamp(min=1)).max() <= 2e-7
    if activation == "gelu":  # torch's own is zero below -6
        in_the_tail = (x > -8) & (x < 0)
        relative = (y.double() - right)[in_the_tail] / right[in_the_tail]
        assert relative.abs().max() < 1e-5


@pytest.mark.parametrize("activation", FUSED)
def test_accuracy_in_float64(activation: str) -> None:
    x = torch.linspace(-20, 20, 20_001, dtype=torch.float64)
    y = through_identity(x, activation)
    torch.testing.assert_close(y, exact(x, activation), rtol=1e-12, atol=1e-14)


@needs_native
@pytest.mark.parametrize("activation", FUSED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_nan_and_infinity(activation: str, dtype: torch.dtype) -> None:
    x = torch.tensor([math.nan, math.inf, -1e4, 1e4, -88.0, 88.0, -0.0, 0.0], dtype=dtype)
    y = through_identity(F.pad(x, (0, 11), value=1.0), activation)[:8]
    assert y[0].isnan()
    assert y[1:].tolist() == [math.inf, 0, float(x[3]), 0, float(x[5]), 0, 0]


def layer(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, csr.CsrIndex, Tensor]:
    generator = torch.Generator().manual_seed(0)
    index = csr.index_from_mask(torch.rand(50, 70, generator=generator) < 0.2)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    x = torch.randn(40, 70, generator=generator).to(dtype).requires_grad_()
    values = torch.randn(index.nnz, generator=generator, dtype=wide, requires_grad=True)
    return x, values, index, torch.randn(50, generator=generator, dtype=wide, requires_grad=True)


def in_dense(
    x: Tensor, values: Tensor, index: csr.CsrIndex, bias: Tensor, activation: str
) -> tuple[Any, ...]:
    """Output and gradients in float64, by torch alone."""
    wide = [t.detach().double().requires_grad_() for t in (x, values, bias)]
    weight = csr.to_dense(wide[1], index.crow, index.col, x.shape[-1])
    y = ACTIVATIONS[activation](F.linear(wide[0], weight, wide[2]))
    return (y, *torch.autograd.grad(y.sin().sum(), wide))


@pytest.mark.parametrize("variant", ["auto", "dense", "reference"])
@pytest.mark.parametrize("activation", FUSED)
def test_gradients_are_those_of_dense(activation: str, variant: str) -> None:
    x, values, index, bias = layer()
    y = csr.linear(x, values, index, bias, activation=activation, variant=variant)
    got = (y, *torch.autograd.grad(y.sin().sum(), (x, values, bias)))
    for a, b in zip(got, in_dense(x, values, index, bias, activation), strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("activation", FUSED)
def test_dense_gradient_goes_through_the_activation(activation: str) -> None:
    x, values, index, bias = layer()
    probe = torch.zeros(()).expand(50, 70).requires_grad_()
    y = csr.linear(x, values, index, bias, probe=probe, activation=activation)
    y.sin().sum().backward()
    mask = csr.to_dense(torch.ones_like(values) > 0, index.crow, index.col, 70)
    torch.testing.assert_close(probe.grad[mask], values.grad)
    dense = csr.to_dense(values.detach(), index.crow, index.col, 70).requires_grad_()
    ACTIVATIONS[activation](F.linear(x.detach(), dense, bias.detach())).sin().sum().backward()
    torch.testing.assert_close(probe.grad, dense.grad, rtol=1e-4, atol=1e-4)


def test_nan_lets_the_gradient_through_as_in_torch() -> None:
    index = csr.index_from_mask(torch.eye(3, dtype=torch.bool))
    x = torch.tensor([[math.nan, 1.0, -1.0]]).expand(20, 3).clone().requires_grad_()
    values = torch.ones(3)
    csr.linear(x, values, index, activation="relu").backward(torch.full((20, 3), 2.0))
    plain = x.detach().clone().requires_grad_()
    torch.relu(plain).backward(torch.full((20, 3), 2.0))
    assert torch.equal(x.grad, plain.grad)


def test_output_changed_in_place_is_noticed() -> None:
    """As with torch.relu, whose gradient reads the output too."""
    x, values, index, bias = layer()
    y = csr.linear(x, values, index, bias, activation="relu")
    with torch.no_grad():
        y.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("activation", FUSED)
def test_the_op_itself_has_the_gradient(activation: str) -> None:
    """GELU too, which :func:`csr.linear` does not fuse where a gradient is wanted."""
    x, values, index, bias = layer()
    y = OPS["csr_linear"](x, values, bias, None, *index, activation=activation)
    got = (y, *torch.autograd.grad(y.sin().sum(), (x, values, bias)))
    for a, b in zip(got, in_dense(x, values, index, bias, activation), strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("activation", FUSED)
def test_compiles(activation: str) -> None:
    torch._dynamo.reset()
    x, values, index, bias = layer()

    def call(x: Tensor, values: Tensor, bias: Tensor) -> Tensor:
        return csr.linear(x, values, index, bias, activation=activation)

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    results = []
    for function in (call, compiled):
        y = function(x, values, bias)
        results.append((y, *torch.autograd.grad(y.sin().sum(), (x, values, bias))))
        with torch.no_grad():
            results[-1] += (function(x, values, bias),)
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


def test_unknown_activation() -> None:
    x, values, index, bias = layer()
    sentence = "Expected activation to be none, relu, gelu or gelu_tanh. Got 'swish'."
    with pytest.raises(ValueError, match=sentence):
        csr.linear(x, values, index, bias, activation="swish")


@needs_native
def test_unknown_activation_in_native_code() -> None:
    x, values, index, bias = (t.detach() if isinstance(t, Tensor) else t for t in layer())
    native_op = torch.ops.sparsekern.csr_linear
    with pytest.raises(RuntimeError, match="Expected activation to be none, relu, gelu or gelu_ta"):
        native_op(x, values, bias, None, *index, activation="swish", variant="panel")


@pytest.mark.parametrize("backend", [None, "aot_eager"])
@pytest.mark.parametrize("variant", ["auto", "dense"])
@pytest.mark.parametrize("activation", FUSED)
def test_convolutions(activation: str, variant: str, backend: str | None) -> None:
    """Outputs and gradients, the dense one too, are those of torch; eager and compiled."""
    torch._dynamo.reset()
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(10, 6, 3, 3, generator=generator) < 0.3
    index = csr.index_from_mask(mask)
    x, values, bias = (
        torch.randn(*shape, generator=generator).requires_grad_()
        for shape in ((3, 6, 11, 18), (index.nnz,), (10,))
    )
    probe = torch.zeros(()).expand(10, 54).requires_grad_()
    options: dict[str, Any] = {"kernel_size": (3, 3), "padding": (1, 1), "variant": variant}

    def call(x: Tensor, values: Tensor, bias: Tensor, probe: Tensor | None) -> Tensor:
        return csr.conv2d(x, values, index, bias, probe=probe, activation=activation, **options)

    run = call if backend is None else torch.compile(call, fullgraph=True, backend=backend)
    y = run(x, values, bias, probe)
    got = (y, *torch.autograd.grad(y.sin().sum(), (x, values, bias, probe)))
    with torch.no_grad():
        torch.testing.assert_close(run(x, values, bias, None), y, rtol=1e-5, atol=1e-5)
    wide = [t.detach().double().requires_grad_() for t in (x, values, bias)]
    weight = csr.to_dense(wide[1], index.crow, index.col, 54)
    z = F.conv2d(wide[0], weight.view(10, 6, 3, 3), wide[2], padding=1)
    right = ACTIVATIONS[activation](z)
    gradients = torch.autograd.grad(right.sin().sum(), (*wide, weight))
    for a, b in zip(got, (right, *gradients), strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-4)
