"""SparseConv2d: torch's Conv2d on the same weight, in every geometry, and the errors."""

from __future__ import annotations

import copy
import itertools
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

import sparsekern as sk
from sparsekern.testing import assert_close_to_oracle

GEOMETRIES: dict[str, dict[str, Any]] = {
    "plain": {},
    "same": {"padding": "same"},
    "same_even_kernel": {"kernel_size": (2, 4), "padding": "same", "dilation": (1, 3)},
    "valid": {"padding": "valid"},
    "strided": {"stride": 2, "padding": 1},
    "grouped": {"groups": 4, "padding": (1, 0)},
    "depthwise": {"out_channels": 24, "groups": 8, "padding": 1},
    "reflect": {"padding": 2, "padding_mode": "reflect"},
    "replicate": {"padding": (2, 1), "padding_mode": "replicate", "stride": (1, 2)},
    "circular": {"padding": (1, 2), "padding_mode": "circular", "dilation": (1, 2)},
    "same_reflect": {"padding": "same", "padding_mode": "reflect"},
    "no_bias": {"bias": False, "padding": 1},
    "pointwise": {"kernel_size": 1},
}


def conv_of(**changes: Any) -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(**{"in_channels": 8, "out_channels": 12, "kernel_size": 3, **changes})


def masked_twin(conv: nn.Conv2d, mask: Tensor, dtype: torch.dtype) -> nn.Conv2d:
    """The dense layer with zeros."""
    twin = copy.deepcopy(conv).to(dtype)
    twin.weight.data *= mask
    return twin


def outputs_and_gradients(layer: nn.Module, x: Tensor, mask: Tensor | None) -> list[Tensor]:
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    y = layer(x)
    (y * torch.linspace(-1, 1.5, y.numel()).view(y.shape).to(y)).sum().backward()
    weight = layer.weight.grad[mask] if mask is not None else layer.format.parameter.grad
    parts = [y.detach(), x.grad, weight]
    return parts if layer.bias is None else [*parts, layer.bias.grad]


@pytest.mark.parametrize("format", ["csr", "masked"])
@pytest.mark.parametrize("name", GEOMETRIES)
def test_equals_dense(name: str, format: str) -> None:
    conv = conv_of(**GEOMETRIES[name])
    x = torch.randn(3, 8, 9, 11)
    mask = torch.rand(conv.weight.shape) < 0.3
    sparse = sk.nn.SparseConv2d.from_dense(conv, mask=mask, format=format)
    got = outputs_and_gradients(sparse, x, None)
    if format == "masked":
        got[2] = got[2][mask]
    plain = outputs_and_gradients(masked_twin(conv, mask, torch.float32), x, mask)
    oracle = outputs_and_gradients(masked_twin(conv, mask, torch.float64), x.double(), mask)
    for g, p, o, what in zip(got, plain, oracle, ("y", "dx", "dweight", "dbias"), strict=False):
        assert_close_to_oracle(g, p, o, what)
    assert str(sparse.to_dense()) == str(conv)
    assert torch.equal(sparse.to_dense()(x), masked_twin(conv, mask, torch.float32)(x))


@pytest.mark.parametrize("format", ["csr", "masked"])
def test_memory_formats_and_single_images(format: str) -> None:
    conv = conv_of(padding=1)
    sparse = sk.nn.SparseConv2d.from_dense(conv, density=0.2, format=format)
    x = torch.randn(2, 8, 6, 7)
    y = sparse(x)
    last = sparse(x.to(memory_format=torch.channels_last))
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(last, y, atol=1e-5)
    assert torch.allclose(sparse(x[0]), y[0], atol=1e-5)
    assert sparse.to(memory_format=torch.channels_last)(x).shape == y.shape


def test_autocast_and_half_inputs() -> None:
    sparse = sk.nn.SparseConv2d.from_dense(conv_of(padding=1), density=0.2, format="csr")
    x = torch.randn(2, 8, 6, 7)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = sparse(x.bfloat16())
    assert y.dtype == torch.bfloat16
    assert torch.allclose(y.float(), sparse(x), atol=0.05)
    y.float().sum().backward()
    assert sparse.format.values.grad.dtype == torch.float32


def test_copies_and_state() -> None:
    torch.manual_seed(1)
    layer = sk.nn.SparseConv2d(8, 12, 3, padding=1, groups=2, density=0.1)
    x = torch.randn(2, 8, 6, 6)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(twin(x), layer(x))
    other = sk.nn.SparseConv2d(8, 12, 3, padding=1, groups=2, density=0.2)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x), layer(x))
    other.format.validate()
    dense = layer.to_dense()
    again = sk.nn.SparseConv2d.from_dense(dense)
    assert torch.equal(again.mask(), layer.mask())
    again.load_state_dict(dense.state_dict())  # a dense checkpoint takes the current mask
    assert torch.equal(again(x), layer(x))


def test_set_mask_moves_values() -> None:
    layer = sk.nn.SparseConv2d(4, 6, 3, density=0.25)
    old, weight = layer.mask(), layer.weight.detach()
    new = torch.zeros_like(old)
    new.view(-1)[: layer.format.nnz] = True
    change = layer.set_mask(new)
    assert torch.equal(layer.weight.detach(), weight * (old & new))
    assert change.positions is not None
    layer.format.validate()


def test_compiles_in_one_graph_over_topologies() -> None:
    layer = sk.nn.SparseConv2d(8, 12, 3, padding=1, density=0.1, format="csr")
    x = torch.randn(2, 8, 6, 6)
    torch._dynamo.reset()
    counters = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layer, fullgraph=True, backend=counters)
    for step in range(4):
        assert torch.allclose(compiled(x), layer(x))
        rolled = layer.mask().flatten().roll(step + 1).view(layer.format.shape)
        layer.set_mask(rolled)
    assert counters.frame_count == 1


def test_exports() -> None:
    model = nn.Sequential(sk.nn.SparseConv2d(8, 12, 3, padding=1, density=0.1), nn.ReLU()).eval()
    x = torch.randn(2, 8, 6, 6)
    exported = torch.export.export(model, (x,))
    assert torch.equal(exported.module()(x), model(x))


@pytest.mark.parametrize("init", ["dense", "sparse_fan_in"])
def test_initialisation(init: str) -> None:
    torch.manual_seed(0)
    layer = sk.nn.SparseConv2d(64, 64, 3, density=0.1, init=init)
    deviation = layer.weight.detach()[layer.mask()].std().item()
    dense = nn.Conv2d(64, 64, 3).weight.std().item()
    assert deviation == pytest.approx(dense * (10**0.5 if init == "sparse_fan_in" else 1), rel=0.05)


WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"in_channels": 0}, ValueError, "Expected in_channels to be above 0"),
    ({"groups": 3}, ValueError, "Expected groups to divide in_channels and out_channels"),
    ({"padding_mode": "mirror"}, ValueError, "Expected padding_mode to be one of zeros, reflect"),
    ({"padding": "full"}, ValueError, "Expected padding to be numbers, same or valid"),
    ({"padding": "same", "stride": 2}, ValueError, "Expected stride to be 1 with padding='same'"),
    ({"stride": 0}, ValueError, "Expected stride to be two numbers of at least 1"),
    ({"kernel_size": (3, 3, 3)}, ValueError, "Expected kernel_size to be two numbers"),
    ({"dilation": -1}, ValueError, "Expected dilation to be two numbers of at least 1"),
    ({"padding": -1}, ValueError, "Expected padding to be two numbers of at least 0"),
    ({"density": 1.5}, ValueError, r"Expected density to be in \[0, 1\]"),
    ({"init": "zeros"}, ValueError, "Expected init to be dense or sparse_fan_in"),
    ({"format": "coo"}, ValueError, "Expected format"),
]


@pytest.mark.parametrize(("changes", "kind", "sentence"), WRONG)
def test_wrong_arguments(changes: dict[str, Any], kind: type[Exception], sentence: str) -> None:
    arguments = {"in_channels": 8, "out_channels": 12, "kernel_size": 3, **changes}
    with pytest.raises(kind, match="^" + sentence):
        sk.nn.SparseConv2d(**arguments)


def test_wrong_inputs() -> None:
    layer = sk.nn.SparseConv2d(8, 12, 3, density=0.1)
    for shape, sentence in (
        ((2, 7, 5, 5), "Expected x to have 8 channels"),
        ((2, 8, 2, 5), "Expected x to be as large as the kernel"),
        ((8, 5), "Expected x to have 4 dimensions"),
    ):
        with pytest.raises(ValueError, match=sentence):
            layer(torch.zeros(shape))
    with pytest.raises(AttributeError, match="Expected the weight of a SparseConv2d"):
        layer.weight = torch.zeros(12, 8, 3, 3)
    with pytest.raises(TypeError, match=r"Expected conv to be a torch\.nn\.Conv2d"):
        sk.nn.SparseConv2d.from_dense(nn.Linear(3, 4))


def small_cnn() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1, groups=4),
        nn.Flatten(),
        nn.Linear(32 * 16, 10),
    )


def test_sparsify_and_densify() -> None:
    model = small_cnn()
    x = torch.randn(2, 3, 8, 8)
    report = sk.sparsify(model, 0.2)
    assert [row.names for row in report.layers] == [["3"], ["6"], ["8"]]
    assert "first convolution" in report.left_dense[0].reason
    assert report.density == pytest.approx(0.2, abs=1e-3)
    dense = sk.densify(model)
    assert all(type(a) is type(b) for a, b in zip(dense, small_cnn(), strict=True))
    assert torch.allclose(dense(x), model(x), atol=1e-5)


@pytest.mark.parametrize("name", ["rigl", "set", "gmp", "static"])
def test_methods_train_convolutions(name: str) -> None:
    """Counts stay, masked weights stay zero, momentum follows, and the loss falls."""
    model = small_cnn()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
    changes: dict[str, Any] = {} if name == "static" else {"update_every": 3}
    method = sk.prune.METHODS[name](density=0.2, **changes)
    pruner = sk.Pruner(model, optimizer, method, total_steps=40)
    x, y = torch.randn(16, 3, 8, 8), torch.randint(10, (16,))
    losses = []
    for _ in range(40):
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        pruner.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        for layer in sk.nn.sparse_layers(model).values():
            assert not layer.weight[~layer.mask()].any()
    assert pruner.density == pytest.approx(0.2, abs=1e-3)
    assert losses[-1] < 0.2 * losses[0]


def test_dense_gradient_of_rigl() -> None:
    """Growth sees the gradient of the whole weight, of a grouped and strided layer too."""
    conv = conv_of(groups=2, stride=2, padding=1)
    x = torch.randn(2, 8, 7, 7)
    for format in ("csr", "masked"):
        sparse = sk.nn.SparseConv2d.from_dense(conv, density=0.2, format=format)
        twin = sparse.to_dense()
        sparse.format.arm_dense_grad()
        for layer in (sparse, twin):
            layer(x).square().sum().backward()
        assert torch.allclose(sparse.format.take_dense_grad(), twin.weight.grad, atol=1e-3)


def test_tied_weights_with_geometries_of_their_own() -> None:
    """Two convolutions over one weight at two scales."""
    near, far = conv_of(in_channels=8, out_channels=8, padding=1), None
    far = conv_of(in_channels=8, out_channels=8, padding=2, dilation=2)
    far.weight = near.weight
    model = nn.Sequential(nn.Conv2d(16, 8, 1), near, far)
    sk.sparsify(model, 0.3)
    assert model[1].format is model[2].format
    x = torch.randn(1, 16, 6, 6)
    assert torch.allclose(sk.densify(model)(x), model(x), atol=1e-5)


def test_threads_do_not_change_bits() -> None:
    layer = sk.nn.SparseConv2d(20, 40, 3, padding=1, density=0.2, format="csr")
    x = torch.randn(40, 20, 12, 12)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        layer.zero_grad()
        results.append(outputs_and_gradients(layer, x, None))
    for a, b in itertools.pairwise(results):
        assert all(torch.equal(p, q) for p, q in zip(a, b, strict=True))
