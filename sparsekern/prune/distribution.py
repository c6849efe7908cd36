"""How much for which tensor: densities of layers from one density of the whole."""

from __future__ import annotations

import math
from collections.abc import Callable

from sparsekern._checks import check_fraction
from sparsekern._registry import Registry

Shape = tuple[int, ...]
Distribution = Callable[[list[Shape], float], list[float]]
DISTRIBUTIONS: Registry[Distribution] = Registry("distribution")


def uniform(shapes: list[Shape], density: float) -> list[float]:
    """Every layer has the density of the whole."""
    return [density] * len(shapes)


def er(shapes: list[Shape], density: float) -> list[float]:
    """Erdos-Renyi: densities proportional to ``(n_in + n_out) / (n_in n_out)``.

    Of a convolution only the channels count. Reference: Mocanu et al., Scalable training of
    artificial neural networks (SET), 2018.
    """
    return _proportional(shapes, density, [_er_weight(s[:2]) for s in shapes])


def erk(shapes: list[Shape], density: float) -> list[float]:
    """Erdos-Renyi kernel: densities proportional to ``sum of all sizes / product of all sizes``.

    Reference: Evci et al., Rigging the Lottery, 2020, section 3; the solution with layers that
    become dense is that of the authors' code.
    """
    return _proportional(shapes, density, [_er_weight(s) for s in shapes])


def _er_weight(shape: Shape) -> float:
    """``sum of the sizes / product of the sizes``; 0 for a layer without weights."""
    return sum(shape) / math.prod(shape) if math.prod(shape) else 0.0


def _proportional(shapes: list[Shape], density: float, weights: list[float]) -> list[float]:
    """``eps * weight``, with ``eps`` such that the total fits; layers that pass 1 are dense."""
    sizes = [math.prod(shape) for shape in shapes]
    dense = {i for i, size in enumerate(sizes) if size == 0}
    while len(dense) < len(shapes):
        others = [i for i in range(len(shapes)) if i not in dense]
        budget = sum(density * sizes[i] for i in others)
        budget -= sum((1 - density) * sizes[i] for i in dense)
        epsilon = budget / sum(weights[i] * sizes[i] for i in others)
        largest = max(weights[i] for i in others)
        if epsilon * largest <= 1:
            break
        dense.update(i for i in others if weights[i] == largest)
    else:
        return [1.0] * len(shapes)
    return [1.0 if i in dense else max(0.0, epsilon * weights[i]) for i in range(len(shapes))]


for _name, _function in (("uniform", uniform), ("er", er), ("erk", erk)):
    DISTRIBUTIONS.add(_name, _function)


def kept_counts(
    shapes: list[Shape], density: float, distribution: str = "erk", unit: int = 1
) -> list[int]:
    """Kept weights per layer; their sum is ``round(density * total)``, in units of ``unit`` weights
    (a block).

    Fractions are rounded by largest remainder. Above density 0 no layer becomes empty: one weight
    is taken from the largest layer for each that would, and the sum is larger where there are not
    enough, one unit a layer.
    """
    check_fraction(density, "density")
    sizes = [math.prod(shape) // unit for shape in shapes]
    if not sizes:
        return []
    wanted = [
        d * n for d, n in zip(DISTRIBUTIONS[distribution](shapes, density), sizes, strict=True)
    ]
    counts = [min(int(w), n) for w, n in zip(wanted, sizes, strict=True)]
    missing = min(round(density * sum(sizes)), sum(sizes)) - sum(counts)
    by_remainder = sorted(range(len(sizes)), key=lambda i: (counts[i] - wanted[i], i))
    while missing > 0:
        for i in by_remainder:
            if missing > 0 and counts[i] < sizes[i]:
                counts[i] += 1
                missing -= 1
    if density > 0.0:
        _fill_empty(counts, sizes)
    return [count * unit for count in counts]


def _fill_empty(counts: list[int], sizes: list[int]) -> None:
    """One unit for each layer that has none, taken from the largest."""
    for i, count in enumerate(counts):
        if count == 0 and sizes[i] > 0:
            donor = max(range(len(sizes)), key=lambda j: counts[j])
            counts[donor] -= counts[donor] > 1
            counts[i] = 1
