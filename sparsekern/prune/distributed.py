"""Agreement between ranks: rank 0 decides every topology, gradients that decide are averaged."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from sparsekern.ops import mask as mask_ops


def is_distributed() -> bool:
    """Whether several processes train together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def average_(tensor: Tensor) -> Tensor:
    """The mean over ranks, in place."""
    if is_distributed():
        dist.all_reduce(tensor)
        tensor /= dist.get_world_size()
    return tensor


def from_rank_zero(mask: Tensor) -> Tensor:
    """Rank 0's mask on every rank; one bit a weight travels."""
    if not is_distributed():
        return mask
    bits = mask_ops.pack_bits(mask)
    dist.broadcast(bits, 0)
    return mask_ops.unpack_bits(bits, mask.shape)


def any_rank(flag: bool, device: torch.device) -> bool:
    """True everywhere if it is True anywhere."""
    if not is_distributed():
        return flag
    value = torch.tensor([float(flag)], device=device)
    dist.all_reduce(value, op=dist.ReduceOp.MAX)
    return bool(value.item())
