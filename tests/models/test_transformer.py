"""The blocks that ViT, BERT and GPT share."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from sparsekern.models import BERT
from sparsekern.models.transformer import Block, SelfAttention, initialize


def _copy(own: Block, theirs: nn.TransformerEncoderLayer) -> None:
    """The weights of torch's encoder layer."""
    attention = theirs.self_attn
    parts = zip(attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3), strict=True)
    layers = (own.attention.query, own.attention.key, own.attention.value)
    with torch.no_grad():
        for layer, (weight, bias) in zip(layers, parts, strict=True):
            layer.weight.copy_(weight)
            layer.bias.copy_(bias)
    own.attention.output.load_state_dict(attention.out_proj.state_dict())
    own.hidden.load_state_dict(theirs.linear1.state_dict())
    own.output.load_state_dict(theirs.linear2.state_dict())
    own.norm1.load_state_dict(theirs.norm1.state_dict())
    own.norm2.load_state_dict(theirs.norm2.state_dict())


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("masked", ["nothing", "padding", "causal"])
def test_equals_torchs_encoder_layer(norm_first: bool, masked: str):
    theirs = nn.TransformerEncoderLayer(
        12, 3, 20, 0.0, "gelu", batch_first=True, norm_first=norm_first
    )
    own = Block(12, 3, 20, 0.0, norm_first=norm_first, causal=masked == "causal")
    _copy(own, theirs)
    x = torch.randn(2, 5, 12)
    if masked == "padding":
        padding = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
        expected = theirs(x, src_key_padding_mask=padding)
        got = own(x, ~padding[:, None, None, :])
    elif masked == "causal":
        later = torch.ones(5, 5, dtype=torch.bool).triu(1)
        expected, got = theirs(x, src_mask=later), own(x)
    else:
        expected, got = theirs(x), own(x)
    assert torch.allclose(got, expected, atol=1e-5)


def test_attention_by_hand():
    """One head of one feature: weights of softmax(q k)."""
    attention = SelfAttention(1, 1, 0.0, causal=False)
    for layer in attention.children():
        nn.init.ones_(layer.weight)
        nn.init.zeros_(layer.bias)
    x = torch.tensor([[[0.0], [1.0]]])
    shares = torch.tensor([1.0, torch.e]) / (1 + torch.e)
    assert torch.allclose(attention(x)[0, :, 0], torch.stack([torch.tensor(0.5), shares[1]]))


def test_dropout_acts_while_training_alone():
    block, x = Block(8, 2, 16, 0.5, norm_first=True), torch.randn(1, 3, 8)
    assert not torch.equal(block(x), block(x))
    block.eval()
    assert torch.equal(block(x), block(x))


def test_initialisation():
    model = nn.Sequential(
        nn.Linear(100, 200), nn.LayerNorm(100), nn.Embedding(50, 100), nn.Conv2d(3, 48, 4)
    )
    initialize(model)
    assert model[0].weight.std().item() == pytest.approx((2 / 300) ** 0.5, rel=0.05)
    assert model[3].weight.std().item() == pytest.approx((2 / 96) ** 0.5, rel=0.05)
    assert model[2].weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert not model[0].bias.any()
    assert torch.equal(model[1].weight, torch.ones(100))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"features": 0}, "Expected features to be above 0. Got 0."),
        ({"heads": 0}, "Expected heads to be above 0. Got 0."),
        ({"depth": -1}, "Expected depth to be above 0. Got -1."),
        ({"expansion": 0}, "Expected expansion to be above 0. Got 0."),
        ({"dropout": 1.0}, "Expected dropout to be below 1. Got 1.0."),
        ({"dropout": -0.1}, "Expected dropout to be in [0, 1]. Got -0.1."),
        ({"features": 30}, "Expected features to be a multiple of heads, 4. Got 30."),
    ],
)
def test_errors(options: dict[str, Any], sentence: str):
    with pytest.raises(ValueError) as error:
        BERT(**options)
    assert str(error.value) == sentence
