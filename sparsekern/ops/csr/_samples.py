"""Matrices the csr ops are tested and timed on, the ugly ones included."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

# (name, rows, cols, density); "one_row" puts every entry into one row.
MATRICES = (
    ("typical", 96, 160, 0.1),
    ("dense", 33, 40, 1.0),
    ("empty", 17, 9, 0.0),
    ("sparse_rows", 70, 300, 0.004),
    ("one_row", 50, 210, 0.0),
    ("one_column", 129, 1, 0.5),
    ("one_output", 1, 77, 0.3),
    ("off_tiles", 257, 131, 0.3),
    ("wide_panel", 40, 1100, 0.02),
    ("no_rows", 0, 5, 0.0),
    ("no_columns", 5, 0, 0.0),
    ("tiny", 3, 4, 0.5),
)


def mask(name: str, rows: int, cols: int, density: float) -> Tensor:
    """The sample's mask, the same in every process."""
    generator = torch.Generator().manual_seed(sum(map(ord, name)))
    kept = torch.rand(rows, cols, generator=generator) < density
    if name == "one_row":
        kept[rows // 2] = True
    return kept


def matrices() -> Iterator[tuple[str, Tensor]]:
    """Names and masks."""
    for name, rows, cols, density in MATRICES:
        yield name, mask(name, rows, cols, density)
