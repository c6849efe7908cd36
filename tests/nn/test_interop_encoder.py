"""nn.TransformerEncoder and nn.MultiheadAttention with sparse layers, in train and eval."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

import sparsekern as sk
from sparsekern.formats import CsrFormat
from sparsekern.nn import SparseLinear

X = torch.randn(3, 7, 32, generator=torch.Generator().manual_seed(1))
PADDING = torch.zeros(3, 7, dtype=torch.bool)
PADDING[1, 5:] = PADDING[2, 3:] = True


def encoder(**options: object) -> tuple[nn.TransformerEncoder, nn.TransformerEncoder]:
    """A sparse encoder and its dense twin."""
    layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True, **options)
    sparse = nn.TransformerEncoder(layer, 2)
    report = sk.sparsify(sparse, 0.2, format="csr")
    assert [row.names[0] for row in report.left_dense] == [
        "layers.0.self_attn.out_proj",
        "layers.1.self_attn.out_proj",
    ]
    assert "whose owner may multiply by its weight directly" in report.left_dense[0].reason
    return sparse, sk.densify(sparse)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Batch sizes of the calls of the sparse kernels."""
    sizes: list[int] = []
    run = CsrFormat.linear

    def counted(self: CsrFormat, x: Tensor, bias: Tensor | None = None) -> Tensor:
        sizes.append(x[..., 0].numel())
        return run(self, x, bias)

    monkeypatch.setattr(CsrFormat, "linear", counted)
    return sizes


def test_training_equals_the_dense_twin(calls: list[int]) -> None:
    sparse, dense = encoder()
    for model in (sparse, dense):
        model(X, src_key_padding_mask=PADDING).square().mean().backward()
    assert calls == [21] * 4
    torch.testing.assert_close(sparse(X), dense(X))
    for a, b in zip(sparse.layers, dense.layers, strict=True):
        torch.testing.assert_close(
            a.linear1.format.values.grad, b.linear1.weight.grad[a.linear1.mask()]
        )
        torch.testing.assert_close(a.self_attn.in_proj_weight.grad, b.self_attn.in_proj_weight.grad)


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("padded", [False, True])
def test_eval_runs_the_kernels(calls: list[int], padded: bool, norm_first: bool) -> None:
    """The fast path of eval would multiply by the dense weight: it is not taken."""
    if norm_first:
        with pytest.warns(UserWarning, match="norm_first was True"):
            sparse, dense = encoder(norm_first=True)
    else:
        sparse, dense = encoder()
    sparse.eval(), dense.eval()
    options = {"src_key_padding_mask": PADDING} if padded else {}
    with torch.no_grad():
        got, right = sparse(X, **options), dense(X, **options)
    torch.testing.assert_close(got, right)
    # Of a padded batch, torch makes a nested tensor: only the real tokens are multiplied.
    assert calls == [15 if padded and not norm_first else 21] * 4


def test_twin_takes_the_fast_path_again(monkeypatch: pytest.MonkeyPatch) -> None:
    sparse, dense = encoder()
    taken = []
    fast = torch._transformer_encoder_layer_fwd

    def counted(*args: object) -> Tensor:
        taken.append(1)
        return fast(*args)

    monkeypatch.setattr(torch, "_transformer_encoder_layer_fwd", counted)
    with torch.no_grad():
        for model in (copy.deepcopy(sparse), sparse):
            model.eval()(X)
        assert taken == []
        dense.eval()(X)
    assert len(taken) == 2


def test_layer_put_in_by_hand(calls: list[int]) -> None:
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True).eval()
    dense = copy.deepcopy(layer)
    layer.linear1 = SparseLinear.from_dense(layer.linear1, 0.2, format="csr")
    with torch.no_grad():
        dense.linear1.weight.mul_(layer.linear1.mask())
        torch.testing.assert_close(layer(X), dense(X))
    assert calls == [21]


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_compiles_in_one_graph(mode: str) -> None:
    torch._dynamo.reset()
    sparse, dense = encoder()
    for model in (sparse, dense):
        model.train(mode == "train")
    compiled = torch.compile(sparse, backend="aot_eager", fullgraph=True)
    with torch.set_grad_enabled(mode == "train"):
        torch.testing.assert_close(compiled(X), dense(X))
        if mode == "train":
            compiled(X).sum().backward()


def test_attention_with_a_sparse_projection_by_hand() -> None:
    """The owner of out_proj multiplies by its weight itself: right, if not fast."""
    attention = nn.MultiheadAttention(32, 4, batch_first=True)
    dense = copy.deepcopy(attention)
    attention.out_proj = SparseLinear.from_dense(attention.out_proj, 0.2, format="csr")
    dense.out_proj.weight.data *= attention.out_proj.mask()
    for mode in (True, False):
        attention.train(mode), dense.train(mode)
        with torch.set_grad_enabled(mode):
            torch.testing.assert_close(attention(X, X, X)[0], dense(X, X, X)[0])
    attention.train()(X, X, X)[0].square().sum().backward()
    dense.train()(X, X, X)[0].square().sum().backward()
    torch.testing.assert_close(
        attention.out_proj.format.values.grad,
        dense.out_proj.weight.grad[attention.out_proj.mask()],
    )


@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
def test_nested_tensors(layout: torch.layout) -> None:
    layer = SparseLinear(8, 5, density=0.3)
    parts = [torch.randn(n, 8) for n in (3, 1, 4)]
    nested = torch.nested.nested_tensor(parts, layout=layout, requires_grad=True)
    out = layer(nested)
    assert out.is_nested
    for part, right in zip(out.unbind(), parts, strict=True):
        torch.testing.assert_close(part, layer(right))
    sum(part.square().sum() for part in out.unbind()).backward()
    gradient = layer.format.parameter.grad.clone()
    layer.zero_grad()
    layer(torch.cat(parts)).square().sum().backward()
    torch.testing.assert_close(gradient, layer.format.parameter.grad)
