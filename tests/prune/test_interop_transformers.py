"""Hugging Face BERT and GPT-2, built from small configurations, train and predict sparsely."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import sparsekern as sk
from sparsekern.nn import SparseLinear, SparseTransposedLinear, sparse_layers
from sparsekern.prune import Pruner, RigL

transformers = pytest.importorskip("transformers")


def bert() -> nn.Module:
    config = transformers.BertConfig(
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=16,
    )
    return transformers.BertForMaskedLM(config)


def gpt2() -> nn.Module:
    config = transformers.GPT2Config(
        vocab_size=50,
        n_positions=16,
        n_embd=32,
        n_layer=2,
        n_head=2,
        bos_token_id=0,
        eos_token_id=0,
    )
    return transformers.GPT2LMHeadModel(config)


MODELS = {"bert": bert, "gpt2": gpt2}
TIED = {
    "bert": ("cls.predictions.decoder", "bert.embeddings.word_embeddings"),
    "gpt2": ("lm_head", "transformer.wte"),
}


@pytest.mark.parametrize("name", list(MODELS))
def test_trains_and_predicts(name: str) -> None:
    model = MODELS[name]()
    optimizer = torch.optim.AdamW(sk.optim.param_groups(model, 0.01), lr=1e-3)
    pruner = Pruner(
        model, optimizer, RigL(density=0.2, update_every=2, drop_fraction=0.5), total_steps=20
    )
    head, embedding = TIED[name]
    left = {name: row.reason for row in pruner.report.left_dense for name in row.names}
    assert f"shared with {embedding} (Embedding)" in left[head]
    assert model.get_submodule(head).weight is model.get_submodule(embedding).weight
    assert pruner.density == pytest.approx(0.2, abs=1e-3)
    assert len(pruner.layers) == {"bert": 13, "gpt2": 8}[name]
    kind = SparseTransposedLinear if name == "gpt2" else SparseLinear
    assert all(type(layer) is kind for layer in sparse_layers(model).values())

    tokens = torch.randint(50, (4, 8))
    masks = [layer.mask() for layer in pruner.layers]
    losses = []
    for _ in range(6):
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        pruner.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    changed = [not torch.equal(a, b.mask()) for a, b in zip(masks, pruner.layers, strict=True)]
    assert all(changed)

    model.eval()
    dense = sk.densify(model)
    assert not sparse_layers(dense)
    with torch.no_grad():
        torch.testing.assert_close(model(tokens).logits, dense(tokens).logits, atol=1e-4, rtol=1e-4)
    # The densified model is the library's own class with its own layers.
    assert {type(m) for m in dense.modules()} == {type(m) for m in MODELS[name]().modules()}
    assert dense.get_submodule(head).weight is dense.get_submodule(embedding).weight


def test_generates() -> None:
    model = gpt2().eval()
    sk.sparsify(model, 0.2)
    prompt = torch.randint(1, 50, (1, 4))
    options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    mask = torch.ones_like(prompt)
    sparse = model.generate(prompt, attention_mask=mask, **options)
    dense = sk.densify(model).generate(prompt, attention_mask=mask, **options)
    assert torch.equal(sparse, dense)
