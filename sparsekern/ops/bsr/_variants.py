"""Which variant of the bsr ops runs on a GPU when none is asked for."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparsekern.kernels.launch import Launcher

SIDE = 16  # of a tensor core's tile

# Densities up to which block-sparse products are taken to beat dense ones, by the shorter side of
# a block: inputs are read again for each row of blocks, so the flops for a byte from L2 grow with
# the side. Set below what that roofline allows. (unconfirmed: no GPU has run them)
TRITON_DENSITY = {16: 0.05, 32: 0.1, 64: 0.25, 128: 0.4}


def triton_limits(values: Tensor) -> str | None:
    """None if the Triton kernels take these values, or the reason why not."""
    if values.dtype == torch.float64:
        return f"Triton kernels take values of float32. Got {values.dtype}."
    height, width = values.shape[1:]
    if height % SIDE or width % SIDE:
        return (
            f"Triton kernels take blocks with sides of multiples of {SIDE}. Got {height} x {width}."
        )
    return None


def triton_density(block_shape: tuple[int, int]) -> float:
    """The density up to which the Triton kernels are the rule's choice for blocks ``(h, w)``: 0.05
    where the shorter side is 16, 0.1 from 32, 0.25 from 64 and 0.4 from 128 on; 0 where they do not
    take the shape. A written rule, which nothing has measured (unconfirmed)."""
    if any(side % SIDE for side in block_shape):
        return 0.0
    density = 0.0
    for side, limit in TRITON_DENSITY.items():
        if min(block_shape) >= side:
            density = limit
    return density


def choose_on_cuda(launcher: Launcher, x: Tensor, values: Tensor, *rest: Any, **kwargs: Any) -> str:
    """``triton`` where the kernels run and the density is at most :func:`triton_density` of the
    block's shape, else ``dense``.

    The batch does not enter: the dense variant, too, reads and scatters all values in each call.
    """
    _, _, crow, _, crow_t, *_ = rest
    blocks, height, width = values.shape
    grid = (crow.shape[0] - 1) * (crow_t.shape[0] - 1)
    few = blocks <= triton_density((height, width)) * grid
    return "triton" if few and launcher.supports(x, values, *rest, **kwargs) is None else "dense"
