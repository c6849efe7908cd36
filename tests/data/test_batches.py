"""Batches are a function of seed and epoch."""

from __future__ import annotations

import pytest
import torch

from sparsekern.data import batches, steps_per_epoch


def _order(seed: int, epoch: int, samples: int = 20, batch_size: int = 6) -> list[list[int]]:
    x = torch.arange(samples)
    return [x.tolist() for x, _ in batches(x, x, batch_size, seed=seed, epoch=epoch)]


def test_same_seed_and_epoch_give_the_same_batches():
    torch.manual_seed(1)
    first = _order(3, 4)
    torch.manual_seed(2)
    assert _order(3, 4) == first


def test_seeds_and_epochs_give_other_batches():
    orders = [_order(seed, epoch) for seed in (0, 1, 2**31, 2**32 - 1) for epoch in range(3)]
    assert all(a != b for i, a in enumerate(orders) for b in orders[:i])


def test_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    _order(0, 0)
    assert torch.equal(torch.get_rng_state(), before)


def test_incomplete_batch_is_dropped():
    order = _order(0, 0)
    assert [len(batch) for batch in order] == [6, 6, 6]
    assert len({sample for batch in order for sample in batch}) == 18


def test_labels_follow_their_samples():
    x = torch.arange(10)
    for batch_x, batch_y in batches(x, -x, 4, seed=0, epoch=0):
        assert torch.equal(batch_y, -batch_x)


def test_batch_size_above_the_samples():
    with pytest.raises(ValueError) as error:
        steps_per_epoch(20, 21)
    assert str(error.value) == (
        "Expected batch_size to be at most the number of training samples, 20. Got 21."
    )


def test_batch_size_of_zero():
    with pytest.raises(ValueError, match=r"Expected batch_size to be above 0\. Got 0\."):
        steps_per_epoch(20, 0)
