"""What a mask may look like.

A pattern says which masks are legal; a format (:mod:`sparsekern.formats`) says how the kept weights
are stored. Every pattern sees a weight as a matrix ``[O, fan_in]``.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Pattern:
    """Base of all patterns."""


@dataclass(frozen=True)
class Unstructured(Pattern):
    """Any mask."""


UNSTRUCTURED = Unstructured()


@dataclass(frozen=True)
class Block(Pattern):
    """Whole blocks of ``height`` outputs by ``width`` inputs are kept or dropped.

    Of a convolution's weight the matrix is ``[O, kh * kw * I / groups]``, input channel fastest, so
    that a block has neighbouring channels. Layers that the blocks do not divide stay dense.

    Raises TypeError or ValueError unless both sides are whole numbers of 1 to 128.
    """

    height: int
    width: int

    def __post_init__(self) -> None:
        for name, side in (("height", self.height), ("width", self.width)):
            if isinstance(side, bool) or not isinstance(side, int):
                raise TypeError(f"Expected {name} of a block to be an integer. Got {side!r}.")
            if not 1 <= side <= MAX_SIDE:
                raise ValueError(f"Expected {name} of a block to be 1 to {MAX_SIDE}. Got {side}.")

    @property
    def shape(self) -> tuple[int, int]:
        """``(height, width)``."""
        return self.height, self.width

    @property
    def numel(self) -> int:
        """Weights of one block."""
        return self.height * self.width

    def divides(self, shape: tuple[int, ...]) -> bool:
        """Whether a weight of this shape, ``[O, I]`` or ``[O, I / groups, kh, kw]``, is made of
        whole blocks, none of which reaches over two taps."""
        return shape[0] % self.height == 0 and shape[1] % self.width == 0

    def check_divides(self, shape: tuple[int, ...]) -> None:
        """Raises ValueError unless the blocks divide a weight of this shape."""
        if not self.divides(shape):
            raise ValueError(
                f"Expected blocks of {self.height} x {self.width} to divide the outputs and inputs "
                f"of a weight of shape {shape}. Got one that they do not: keep the layer dense, or "
                "use format='csr'."
            )


@dataclass(frozen=True)
class FanIn(Pattern):
    """Every output (a row of ``[O, I / groups * kh * kw]``) keeps the same number of weights, its
    fan-in: those of largest score in the row.

    Reference: Lasby et al., Dynamic Sparse Training with Structured Sparsity, 2024, section 3.
    """

    def count(self, density: float, inputs: int) -> int:
        """Weights that each row of ``inputs`` keeps: ``round(density inputs)``, at least 1 above
        density 0."""
        return min(inputs, max(1, round(density * inputs))) if density > 0 else 0


MAX_SIDE = 128
