"""SparseLinear and conversion."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import sparsekern as sk
from sparsekern.nn import SparseConv2d, SparseLinear
from sparsekern.nn.init import sparse_fan_in_


@pytest.mark.parametrize("format", ["auto", "csr", "masked"])
def test_drop_in_for_linear(format: str) -> None:
    layer = SparseLinear(20, 7, density=0.25, format=format)
    assert (layer.in_features, layer.out_features, layer.density) == (20, 7, 0.25)
    for shape in ((20,), (3, 20), (2, 3, 20), (0, 20)):
        x = torch.randn(shape)
        torch.testing.assert_close(layer(x), nn.functional.linear(x, layer.weight, layer.bias))
    assert layer.weight.shape == (7, 20)
    assert int((layer.weight != 0).sum()) == round(0.25 * 140)
    assert SparseLinear(20, 7, bias=False, format=format).bias is None


def test_weight_is_differentiable_and_cannot_be_assigned() -> None:
    layer = SparseLinear(6, 4, density=0.5, format="csr")
    layer.weight.square().sum().backward()
    torch.testing.assert_close(layer.format.parameter.grad, 2 * layer.format.parameter)
    for value in (torch.zeros(4, 6), nn.Parameter(torch.zeros(4, 6))):
        with pytest.raises(AttributeError, match="to be changed by set_mask"):
            layer.weight = value


def test_from_dense_by_density_mask_and_nonzero() -> None:
    linear = nn.Linear(8, 6)
    kept = SparseLinear.from_dense(linear, 0.25)
    threshold = kept.weight.abs()[kept.mask()].min()
    assert kept.density == 0.25
    assert (linear.weight.abs()[~kept.mask()] <= threshold).all()
    mask = torch.rand(6, 8) < 0.5
    masked = SparseLinear.from_dense(linear, mask=mask)
    assert torch.equal(masked.weight, linear.weight * mask)
    with torch.no_grad():
        linear.weight[0] = 0
    assert SparseLinear.from_dense(linear).density == pytest.approx(40 / 48)


def test_from_dense_leaves_the_original_alone() -> None:
    linear = nn.Linear(8, 6)
    weight = linear.weight.detach().clone()
    layer = SparseLinear.from_dense(linear, 0.5)
    with torch.no_grad():
        layer.format.parameter.zero_()
        layer.bias.zero_()
    assert torch.equal(linear.weight, weight)
    assert not torch.equal(linear.bias, layer.bias)


def test_to_dense_and_back() -> None:
    layer = SparseLinear(8, 6, density=0.3).eval()
    dense = layer.to_dense()
    assert type(dense) is nn.Linear
    assert not dense.training
    x = torch.randn(2, 8)
    torch.testing.assert_close(dense(x), layer(x))


@pytest.mark.parametrize("format", ["csr", "masked"])
def test_loads_a_dense_checkpoint_under_its_mask(format: str) -> None:
    layer = SparseLinear(8, 6, density=0.3, format=format)
    dense = nn.Linear(8, 6)
    mask = layer.mask()
    layer.load_state_dict(dense.state_dict())
    assert torch.equal(layer.weight, dense.weight * mask)
    assert torch.equal(layer.bias, dense.bias)
    layer.format.validate()
    with pytest.raises(RuntimeError, match=r"weight to have shape \(6, 8\). Got \(6, 9\)"):
        layer.load_state_dict(nn.Linear(9, 6).state_dict())


def test_state_dict_keys() -> None:
    assert set(SparseLinear(4, 3, format="csr").state_dict()) == {
        "bias",
        "format.values",
        "format.version",
        "format.crow",
        "format.col",
    }


@pytest.mark.parametrize(
    ("arguments", "kind", "sentence"),
    [
        ({"density": 1.5}, ValueError, r"Expected density to be in \[0, 1\]. Got 1.5"),
        ({"density": "much"}, TypeError, "Expected density to be a number"),
        ({"in_features": 0}, ValueError, "Expected in_features to be above 0"),
        ({"out_features": 2.5}, TypeError, "Expected out_features to be an integer"),
        ({"format": "cst"}, ValueError, "Expected format to be one of .* Did you mean 'csr'"),
        ({"init": "zero"}, ValueError, "Expected init to be dense or sparse_fan_in"),
    ],
)
def test_bad_arguments(arguments: dict[str, object], kind: type[Exception], sentence: str) -> None:
    with pytest.raises(kind, match=sentence):
        SparseLinear(**{"in_features": 4, "out_features": 3, **arguments})


def test_bad_conversions() -> None:
    with pytest.raises(TypeError, match=r"Expected linear to be a torch\.nn\.Linear\. Got ReLU"):
        SparseLinear.from_dense(nn.ReLU())
    with pytest.raises(ValueError, match="Expected density or mask, not both"):
        SparseLinear.from_dense(nn.Linear(2, 2), 0.5, mask=torch.ones(2, 2, dtype=torch.bool))


@pytest.mark.parametrize(
    ("x", "kind", "sentence"),
    [
        (torch.zeros(2, 5), ValueError, "Expected x to have 4 features in its last dimension"),
        (torch.zeros(2, 4, dtype=torch.int64), TypeError, "Expected x to have dtype"),
        (torch.zeros(2, 4, dtype=torch.float64), TypeError, "Expected x and values to be float64"),
        (torch.zeros(2, 4, device="meta"), ValueError, "Expected x to be on cpu"),
        (None, TypeError, "Expected x to be a tensor"),
    ],
)
def test_bad_inputs(x: torch.Tensor, kind: type[Exception], sentence: str) -> None:
    layer = SparseLinear(4, 3, density=0.5, format="csr")
    with pytest.raises(kind, match=sentence):
        layer(x)


def test_sparse_fan_in_keeps_the_variance() -> None:
    mask = torch.zeros(3, 100, dtype=torch.bool)
    mask[0, :25], mask[1, :100] = True, True
    weight = sparse_fan_in_(torch.ones(3, 100), mask)
    assert weight[0, 0] == 2
    assert weight[1, 0] == 1
    assert weight[2, 0] == 10


class Tied(nn.Module):
    """Two linear layers share a weight; a third shares one with an embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(12, 12), nn.Linear(12, 12)
        self.second.weight = self.first.weight
        self.embedding = nn.Embedding(5, 12)
        self.head = nn.Linear(12, 5, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.second(self.first(x).relu()))


def test_tied_weights_stay_tied() -> None:
    model = Tied()
    report = sk.sparsify(model, 0.2, format="csr")
    assert model.first.format is model.second.format
    assert type(model.head) is nn.Linear
    assert model.head.weight is model.embedding.weight
    assert [layer.names for layer in report.layers] == [["first", "second"]]
    assert "shared with embedding (Embedding)" in report.left_dense[0].reason
    assert report.layers[0].numel == 144
    x = torch.randn(3, 12)
    dense = sk.densify(model)
    torch.testing.assert_close(dense(x), model(x))
    assert dense.first.weight is dense.second.weight
    assert dense.head.weight is dense.embedding.weight
    model(x).sum().backward()
    dense(x).sum().backward()
    torch.testing.assert_close(
        model.first.format.parameter.grad, dense.first.weight.grad[model.first.mask()]
    )


def test_tied_weights_through_copy_and_checkpoint() -> None:
    model = Tied()
    sk.sparsify(model, 0.2, format="csr")
    copied = copy.deepcopy(model)
    assert copied.first.format is copied.second.format
    fresh = Tied()
    sk.sparsify(fresh, 0.2, format="csr")
    fresh.load_state_dict(model.state_dict())
    x = torch.randn(3, 12)
    assert torch.equal(fresh(x), model(x))


def test_densify_leaves_the_model_alone() -> None:
    model = nn.Sequential(
        SparseLinear(6, 5, density=0.4), nn.ReLU(), SparseLinear(5, 2, density=0.9)
    )
    dense = sk.densify(model)
    assert isinstance(model[0], SparseLinear)
    assert not any(isinstance(m, SparseLinear) for m in dense.modules())
    x = torch.randn(4, 6)
    torch.testing.assert_close(dense(x), model(x))
    assert type(sk.densify(model[0])) is nn.Linear


@pytest.mark.parametrize("dtype", [torch.int32, torch.bool, torch.complex64, "float32"])
def test_dtype_that_cannot_be_trained(dtype: object) -> None:
    with pytest.raises(TypeError, match="Expected dtype to be a floating torch.dtype. Got "):
        SparseLinear(8, 4, dtype=dtype)
    with pytest.raises(TypeError, match="Expected dtype to be a floating torch.dtype. Got "):
        SparseConv2d(8, 4, 3, dtype=dtype)


def test_format_that_is_no_name() -> None:
    with pytest.raises(ValueError, match=r"Expected format to be one of .* Got \['csr'\]"):
        SparseLinear(8, 4, format=["csr"])


def test_functional_transforms() -> None:
    """vmap works; torch.func.grad is refused with a sentence that says what works."""
    layer = sk.nn.SparseLinear(6, 4, density=0.5, format="csr")
    x = torch.randn(3, 2, 6)
    assert torch.allclose(torch.func.vmap(layer)(x), layer(x), atol=1e-6)
    with pytest.raises(
        NotImplementedError, match=r"Expected no torch\.func\.grad through csr_linear"
    ):
        torch.func.grad(lambda each: layer(each).sum())(x)
    dense = sk.densify(layer)
    assert torch.isfinite(torch.func.grad(lambda each: dense(each).sum())(x)).all()
