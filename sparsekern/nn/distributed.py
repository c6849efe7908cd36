"""Sparse models under DistributedDataParallel."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sparsekern.formats import SparseFormat
from sparsekern.ops import mask as mask_ops


def is_distributed() -> bool:
    """Whether several processes train together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def from_rank_zero(mask: Tensor) -> Tensor:
    """Rank 0's mask on every rank; one bit a weight travels."""
    if not is_distributed():
        return mask
    bits = mask_ops.pack_bits(mask)
    dist.broadcast(bits, 0)
    return mask_ops.unpack_bits(bits, mask.shape)


def ddp_ignore(root: nn.Module) -> list[str]:
    """Keeps the indices of sparse layers out of DistributedDataParallel's broadcasts.

    Call it on every rank before wrapping: DDP sends all buffers from rank 0 at each forward pass,
    and an index is larger than the weights it belongs to. Every rank takes rank 0's topology here
    once (one bit a weight travels); from then on whoever changes a mask changes it on every rank,
    as a Pruner does, which calls this itself.

    Returns:
        The names of the buffers that are left out.

    Raises:
        ValueError: the model is wrapped already.
    """
    if isinstance(root, DistributedDataParallel):
        raise ValueError(
            "Expected the model before it is wrapped in DistributedDataParallel. Got a wrapped one."
        )
    names = []
    for name, module in root.named_modules(remove_duplicate=False):
        if isinstance(module, SparseFormat):
            names += [f"{name}.{key}" if name else key for key in module._buffers]
    for module in root.modules():
        if isinstance(module, SparseFormat) and is_distributed():
            mask = module.mask()
            agreed = from_rank_zero(mask)
            if not bool((agreed == mask).all()):
                module.set_mask(agreed)
    before = getattr(root, "_ddp_params_and_buffers_to_ignore", [])
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(
        root, [*dict.fromkeys([*before, *names])]
    )
    return names
