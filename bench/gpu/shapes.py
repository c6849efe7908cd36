"""Matrix shapes of the suites: (M, N, K) of ``x [M, K]`` times the transpose of ``W [N, K]``."""

from __future__ import annotations

Shape = tuple[int, int, int]

CUBES: tuple[Shape, ...] = tuple((side, side, side) for side in (1024, 2048, 4096, 8192))
# Llama 3 8B: hidden size 4096, its MLP 14336.
LLAMA_MLP: tuple[Shape, ...] = tuple(
    shape for m in (512, 1024, 2048, 4096, 8192) for shape in ((m, 14336, 4096), (m, 4096, 14336))
)
TINY: tuple[Shape, ...] = ((32, 64, 64), (64, 64, 128))


def products(tiny: bool) -> tuple[Shape, ...]:
    """Cubes, then the MLP's, largest batch first: those decide most."""
    return TINY if tiny else (*reversed(CUBES), *reversed(LLAMA_MLP))


def flops(shape: Shape) -> int:
    """Of the dense product."""
    m, n, k = shape
    return 2 * m * n * k
