"""The decoder that predicts the next token."""

from __future__ import annotations

import pytest
import torch

from sparsekern.models import GPT, MODELS


def test_parameters():
    """Those of the smallest GPT-2."""
    with torch.device("meta"):
        model = GPT(features=768, heads=12, depth=12).build(
            (1024,), 50257, vocabulary=50257, per_token=True
        )
    assert sum(parameter.numel() for parameter in model.parameters()) == 124_439_808


def test_a_token_sees_no_later_one():
    model = GPT(features=8, heads=2, depth=2).build((6,), 10, vocabulary=10, per_token=True)
    x = torch.tensor([[1, 2, 3, 4, 5, 6]])
    y = x.clone()
    y[0, 3] = 9
    first, second = model(x), model(y)
    assert torch.allclose(first[:, :3], second[:, :3], atol=1e-6)
    assert (first[:, 3:] - second[:, 3:]).abs().amax((0, 2)).min() > 1e-4


def test_shorter_text():
    model = GPT(features=8, heads=2, depth=1).build((6,), 10, vocabulary=10, per_token=True)
    x = torch.tensor([[1, 2, 3, 4, 5, 6]])
    assert torch.allclose(model(x)[:, :4], model(x[:, :4]), atol=1e-6)


def test_output_shares_the_embeddings_weight():
    model = GPT(features=8, heads=2, depth=1).build((6,), 10, vocabulary=10, per_token=True)
    assert model.output.weight is model.embed.weight


def test_classes_that_are_no_tokens():
    with pytest.raises(ValueError) as error:
        GPT().build((6,), 3, vocabulary=10, per_token=True)
    assert str(error.value) == (
        "Expected the labels of the data to be tokens of its vocabulary, 10. Got 3 classes."
    )


def test_registered():
    assert MODELS["gpt"] is GPT
