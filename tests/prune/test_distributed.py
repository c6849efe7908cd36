"""Two gloo processes train every method together: identical masks and weights on both ranks."""

from __future__ import annotations

import dataclasses
import gc
import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from sparsekern.prune import GMP, METHODS, Pruner


def _worker(rank: int, store: str) -> None:
    _train(rank, store)
    # torch aborts about one exit in seven when gloo's threads are left to the interpreter's end.
    gc.collect()


def _train(rank: int, store: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    torch.set_num_threads(1)
    try:
        for name in METHODS:
            fields = {field.name for field in dataclasses.fields(METHODS[name])}
            options = {"update_every": 3} if "update_every" in fields else {}
            torch.manual_seed(0)
            model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
            # Ranks differ in their seed: rank 0 decides.
            pruner = Pruner(
                model, optimizer, METHODS[name](density=0.2, **options), total_steps=12, seed=rank
            )
            parallel = DistributedDataParallel(model)
            generator = torch.Generator().manual_seed(rank)
            for _ in range(12):
                parallel(torch.randn(8, 16, generator=generator)).square().mean().backward()
                pruner.step()
                optimizer.zero_grad()
            for value in model.state_dict().values():
                other = value.clone()
                dist.broadcast(other, 0)
                assert torch.equal(value, other), f"{name}: ranks differ"
            if isinstance(pruner.method, GMP):
                with pytest.raises(RuntimeError, match="Expected compact\\(\\) on one process"):
                    pruner.compact()
        dist.barrier()  # a rank that leaves while the other listens breaks the connection
    finally:
        dist.destroy_process_group()


def test_ranks_agree(tmp_path: Path) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    mp.spawn(_worker, args=(str(tmp_path / "store"),), nprocs=2)
