"""Block masks the bsr ops are tested and timed on, the ugly ones included."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

# (name, rows and columns of blocks, density, shape of a block); "one_row" fills one row of blocks.
MATRICES = (
    ("typical", 4, 7, 0.4, (16, 16)),
    ("dense", 3, 5, 1.0, (8, 8)),
    ("empty", 3, 2, 0.0, (4, 4)),
    ("four", 17, 23, 0.2, (4, 4)),
    ("eight", 7, 13, 0.3, (8, 8)),
    ("thirty_two", 4, 5, 0.4, (32, 32)),
    ("flat", 33, 7, 0.3, (1, 16)),
    ("tall", 5, 40, 0.3, (16, 1)),
    ("flat_pair", 9, 6, 0.5, (2, 32)),
    ("odd", 5, 7, 0.4, (3, 5)),
    ("odd_large", 3, 3, 0.5, (27, 19)),
    ("largest", 2, 2, 0.6, (64, 64)),
    ("single", 20, 30, 0.2, (1, 1)),
    ("sparse_rows", 12, 20, 0.02, (16, 16)),
    ("one_row", 5, 40, 0.0, (8, 16)),
    ("one_block", 1, 1, 1.0, (7, 48)),
    ("wide_blocks", 5, 2, 0.6, (16, 48)),
    ("tall_blocks", 2, 5, 0.6, (64, 32)),
    ("very_large", 2, 1, 1.0, (128, 128)),
    ("no_rows", 0, 3, 0.0, (4, 8)),
    ("no_columns", 3, 0, 0.0, (4, 8)),
    ("tiny", 2, 3, 0.5, (2, 2)),
)


def matrices() -> Iterator[tuple[str, Tensor, tuple[int, int]]]:
    """Name, mask of the blocks, the same in every process, and shape of a block."""
    for name, rows, cols, density, block in MATRICES:
        generator = torch.Generator().manual_seed(sum(map(ord, name)))
        kept = torch.rand(rows, cols, generator=generator) < density
        if name == "one_row":
            kept[rows // 2] = True
        yield name, kept, block
