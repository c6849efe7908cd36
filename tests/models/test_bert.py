"""The encoder that classifies."""

from __future__ import annotations

import torch
from torch import nn

from sparsekern.models import BERT, MODELS


def test_parameters_of_the_blocks():
    """Those of BERT-base: twelve layers of 7,087,872."""
    with torch.device("meta"):
        model = BERT(features=768, heads=12, depth=12).build((512,), 2, vocabulary=30522)
    assert sum(p.numel() for p in model.blocks.parameters()) == 85_054_464
    assert sum(p.numel() for p in model.pooler.parameters()) == 590_592


def test_padding_changes_nothing():
    model = BERT(features=8, heads=2, depth=2).build((6,), 3, vocabulary=10).eval()
    text = torch.tensor([[4, 2, 7, 0, 0, 0]])
    before = model(text)
    with torch.no_grad():  # whatever stands for padding
        model.embed.weight[0] += 10.0
        model.position[:, 4:] += 10.0
    assert torch.allclose(model(text), before, atol=1e-6)
    longer = torch.tensor([[4, 2, 7, 1, 0, 0]])
    assert not torch.allclose(model(longer), before, atol=1e-6)


def test_a_sample_of_padding_alone_is_finite():
    model = BERT(features=8, heads=2, depth=1).build((4,), 3, vocabulary=10)
    logits = model(torch.zeros(2, 4, dtype=torch.int64))
    assert torch.isfinite(logits).all()
    logits.sum().backward()
    assert torch.isfinite(model.embed.weight.grad).all()


def test_zeros_in_rows_of_numbers_are_no_padding():
    model = BERT(features=8, heads=2, depth=1).build((4, 3), 2).eval()
    assert isinstance(model.embed, nn.Linear)
    rows = torch.randn(1, 4, 3)
    rows[0, 2:] = 0
    before = model(rows)
    with torch.no_grad():
        model.position[:, 3:] += torch.randn(8)
    assert not torch.allclose(model(rows), before, atol=1e-6)


def test_registered():
    assert MODELS["bert"] is BERT
