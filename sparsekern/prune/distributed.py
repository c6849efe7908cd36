"""Agreement between ranks: rank 0 decides every topology, gradients that decide are averaged."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sparsekern.nn.distributed import ddp_ignore, from_rank_zero, is_distributed

__all__ = ["agree_on_topology", "any_rank", "average_", "from_rank_zero", "is_distributed"]


def agree_on_topology(model: nn.Module) -> None:
    """Every rank takes rank 0's masks, and DistributedDataParallel leaves the indices alone; a
    model that is wrapped already has been sent as a whole."""
    if not isinstance(model, DistributedDataParallel):
        ddp_ignore(model)


def average_(tensor: Tensor) -> Tensor:
    """The mean over ranks, in place."""
    if is_distributed():
        dist.all_reduce(tensor)
        tensor /= dist.get_world_size()
    return tensor


def any_rank(flag: bool, device: torch.device) -> bool:
    """True everywhere if it is True anywhere."""
    if not is_distributed():
        return flag
    value = torch.tensor([float(flag)], device=device)
    dist.all_reduce(value, op=dist.ReduceOp.MAX)
    return bool(value.item())
