"""What the layer ops of compressed rows run on CUDA: a written rule, nothing is measured."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparsekern.kernels.launch import Launcher
from sparsekern.ops._define import Op

# The products read 2 or 4 bytes of the L2 cache for each kept weight and row of x and reuse nothing
# in registers, so tensor cores are as fast from a density of about 0.01 on. With few rows the
# scatter of the dense variant, 8 bytes a weight, is most of its time. Unconfirmed: no GPU has run
# this; sk.tune measures.
DENSITY = 0.01
FEW_ROWS = 64
DENSITY_FEW_ROWS = 0.05


def triton_pays(density: float, positions: int) -> bool:
    """Whether the rule prefers the sparse kernels for so many rows of x, or output pixels.

    Unconfirmed on a GPU.
    """
    return density <= (DENSITY_FEW_ROWS if positions <= FEW_ROWS else DENSITY)


def limits(*args: Any, **_: Any) -> str | None:
    """None, or why the Triton kernels cannot take these arguments."""
    wide = any(isinstance(a, Tensor) and a.dtype == torch.float64 for a in args)
    return "they add up in float32: float64 is for plain torch." if wide else None


def select(launcher: Launcher, density: float, positions: int, *args: Any) -> str:
    """``triton`` where it runs and the rule prefers it, else ``dense``."""
    pays = triton_pays(density, positions) and launcher.supports(*args) is None
    return "triton" if pays else "dense"


def many_rows_run(op: Op, values: Tensor, density: float) -> str:
    """What the rule chooses for more than a few rows, whose number a layer does not know."""
    assert op.triton is not None
    return select(op.triton, density, FEW_ROWS + 1, values)
