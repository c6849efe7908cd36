"""What a conversion does to each layer: targets, and the report of what became of them."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import nn

from sparsekern.formats import Plan


@dataclass
class LayerReport:
    """What became of one layer (or of several that share a weight)."""

    names: list[str]
    shape: tuple[int, ...]
    format: str  # "dense" for a layer that stayed a plain module
    nnz: int
    numel: int
    reason: str = ""

    @property
    def density(self) -> float:
        return self.nnz / self.numel if self.numel else 1.0


@dataclass
class SparsifyReport:
    """What ``sparsify`` did, layer by layer. ``density`` counts the weights of the prunable layers
    (also those that came out at density 1), not biases, norms, embeddings or excluded layers.
    ``left_dense`` has the layers that stay as they are (excluded ones of a model that is sparse
    already keep their format), each with the reason."""

    layers: list[LayerReport] = field(default_factory=list)
    left_dense: list[LayerReport] = field(default_factory=list)
    plan: Plan | None = None  # what was measured, if there was an example

    @property
    def density(self) -> float:
        numel = sum(layer.numel for layer in self.layers)
        return sum(layer.nnz for layer in self.layers) / numel if numel else 1.0

    def __str__(self) -> str:
        rows = [
            (
                ", ".join(layer.names),
                str(layer.shape),
                layer.format,
                f"{layer.density:.4f}",
                layer.reason,
            )
            for layer in (*self.layers, *self.left_dense)
        ]
        rows = [("layer", "shape", "format", "density", ""), *rows]
        widths = [max(len(row[i]) for row in rows) for i in range(5)]
        lines = [
            "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
        return "\n".join([*lines, f"density of the sparse layers together: {self.density:.4f}"])


@dataclass
class Target:
    """A dense weight that can become sparse, and the layers that use it."""

    names: list[str]
    weight: nn.Parameter

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.weight.shape)


def first_match(names: Sequence[str], patterns: Sequence[str]) -> str | None:
    """The first ``fnmatch`` pattern that one of the names matches."""
    for pattern in patterns:
        if any(fnmatch.fnmatchcase(name, pattern) for name in names):
            return pattern
    return None
