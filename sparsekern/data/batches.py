"""Batches as a function of seed and epoch alone."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

import torch
from torch import Tensor

from sparsekern._checks import check_positive


def steps_per_epoch(samples: int, batch_size: int) -> int:
    """Batches of one epoch; the incomplete last one is dropped.

    Raises:
        TypeError, ValueError: ``batch_size`` is not a whole number in [1, samples].
    """
    check_positive(batch_size, "batch_size")
    if batch_size > samples:
        raise ValueError(
            f"Expected batch_size to be at most the number of training samples, {samples}. "
            f"Got {batch_size}."
        )
    return samples // batch_size


def epoch_generator(purpose: str, seed: int, epoch: int) -> torch.Generator:
    """Random numbers that follow from what they are for, the seed of the run and the epoch."""
    # NOTE: torch's generators use 32 bits of their seed, so all of it is hashed into 32 bits.
    return torch.Generator().manual_seed(zlib.crc32(f"{purpose} {seed} {epoch}".encode()))


def batches(
    x: Tensor, y: Tensor, batch_size: int, *, seed: int, epoch: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches of one epoch in random order.

    The order follows from ``(seed, epoch)`` and nothing else, so a resumed run needs no state of a
    loader. The samples left over after the last full batch are dropped (others in every epoch):
    all training steps have the same shapes.

    Args:
        x: ``[samples, ...]``.
        y: ``[samples, ...]``.
        batch_size: samples of a batch, at most those there are.
        seed: of the run.
        epoch: from 0.

    Yields:
        ``(x, y)`` of ``batch_size`` samples.
    """
    steps = steps_per_epoch(len(x), batch_size)
    order = torch.randperm(len(x), generator=epoch_generator("batches", seed, epoch))
    for step in range(steps):
        chosen = order[step * batch_size : (step + 1) * batch_size]
        yield x[chosen], y[chosen]
