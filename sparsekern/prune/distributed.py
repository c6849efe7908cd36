"""Agreement between ranks: rank 0 decides every topology, gradients that decide are averaged."""

from __future__ import annotations

import sys

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sparsekern.nn.distributed import ddp_ignore, from_rank_zero, is_distributed

__all__ = [
    "agree_on_topology",
    "any_rank",
    "average_",
    "check_not_sharded",
    "from_rank_zero",
    "is_distributed",
]


def check_not_sharded(model: nn.Module) -> None:
    """Raises NotImplementedError for a model whose parameters are cut into shards (FSDP)."""
    fsdp = sys.modules.get("torch.distributed.fsdp")  # a sharded model's owner has imported it
    names = ("FullyShardedDataParallel", "FSDPModule")
    kinds = tuple(getattr(fsdp, name) for name in names if hasattr(fsdp, name))
    if any(isinstance(module, kinds) for module in model.modules()):
        raise NotImplementedError(
            "Expected a model whose parameters are whole. Got one sharded by FSDP: train with "
            "DistributedDataParallel, whose traffic already shrinks with the density."
        )


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
