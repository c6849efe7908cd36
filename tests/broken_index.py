"""Ways in which an index tensor can be wrong."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

HUGE = 2**31 - 1


def _set(position: int, value: int) -> Callable[[Tensor], None]:
    def change(tensor: Tensor) -> None:
        tensor[position] = value

    return change


def _swap(tensor: Tensor) -> None:
    """The first two neighbours that differ change places."""
    at = int((tensor[1:] != tensor[:-1]).nonzero()[0])
    tensor[at : at + 2] = tensor[at : at + 2].flip(0)


def _repeat(tensor: Tensor) -> None:
    tensor[1] = tensor[0]


def _shift(tensor: Tensor) -> None:
    tensor += 1


BOUNDS = {
    "negative": _set(1, -1),
    "too_large": _set(1, HUGE),
    "falling": _swap,
    "first": _set(0, 1),
    "last": _set(-1, 0),
    "shifted": _shift,
}
POSITIONS = {
    "negative": _set(1, -1),
    "last_negative": _set(-1, -HUGE - 1),
    "too_large": _set(1, HUGE),
    "last_too_large": _set(-1, 1000),
    "falling": _swap,
    "duplicated": _repeat,
}


def ways(name: str) -> dict[str, Callable[[Tensor], None]]:
    """Ways to break the index tensor of that name; each needs its first row to have two entries."""
    return BOUNDS if name.startswith(("crow", "starts")) else POSITIONS


def broken(tensor: Tensor, way: Callable[[Tensor], None]) -> Tensor:
    """A copy that is wrong."""
    copy = tensor.clone()
    way(copy)
    assert not torch.equal(copy, tensor)
    return copy
