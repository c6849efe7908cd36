"""Patterns of masks."""

from __future__ import annotations

from typing import Any

import pytest

from sparsekern.patterns import Block, FanIn


def test_a_block_divides_whole_taps() -> None:
    block = Block(4, 8)
    assert block.shape == (4, 8)
    assert block.numel == 32
    assert block.divides((8, 16))
    assert not block.divides((6, 16))
    assert block.divides((8, 16, 3, 3))
    assert not block.divides((8, 4, 3, 2))  # 24 inputs, but 4 of a tap
    with pytest.raises(ValueError, match="Expected blocks of 4 x 8 to divide the outputs"):
        block.check_divides((8, 4, 3, 2))


@pytest.mark.parametrize(
    ("sides", "kind", "sentence"),
    [
        ((0, 4), ValueError, "Expected height of a block to be 1 to 128. Got 0"),
        ((4, 129), ValueError, "Expected width of a block to be 1 to 128. Got 129"),
        ((4, True), TypeError, "Expected width of a block to be an integer. Got True"),
        (("4", 4), TypeError, "Expected height of a block to be an integer. Got '4'"),
    ],
)
def test_sides(sides: Any, kind: type[Exception], sentence: str) -> None:
    with pytest.raises(kind, match=sentence):
        Block(*sides)


@pytest.mark.parametrize(
    ("density", "inputs", "count"),
    [(0.0, 9, 0), (1e-6, 9, 1), (0.3, 9, 3), (0.99, 9, 9), (1.0, 9, 9), (0.5, 0, 0)],
)
def test_fan_in(density: float, inputs: int, count: int) -> None:
    assert FanIn().count(density, inputs) == count
