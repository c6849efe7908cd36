"""The loss of samples and of tokens."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from sparsekern.train.loss import cross_entropy


def test_a_label_for_each_sample():
    logits, y = torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 1])
    assert torch.equal(cross_entropy(logits, y), F.cross_entropy(logits, y))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_label_for_each_token(reduction: str):
    logits, y = torch.randn(5, 4, 3), torch.randint(3, (5, 4))
    each = [F.cross_entropy(a, b, reduction="none") for a, b in zip(logits, y, strict=True)]
    expected = getattr(torch.stack(each), reduction)()
    assert torch.allclose(cross_entropy(logits, y, reduction), expected)


def test_by_hand():
    logits = torch.zeros(2, 3, 4)
    assert cross_entropy(logits, torch.ones(2, 3, dtype=torch.int64)).item() == pytest.approx(
        math.log(4)
    )


def test_a_label_for_each_sample_and_logits_for_each_token():
    with pytest.raises(ValueError, match="batch_size"):
        cross_entropy(torch.zeros(2, 3, 4), torch.zeros(2, dtype=torch.int64))
