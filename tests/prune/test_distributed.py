"""Two gloo processes train every method together: identical masks and weights on both ranks."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.nn.parallel import DistributedDataParallel

import sparsekern as sk
from sparsekern.prune import GMP, METHODS, Pruner
from sparsekern.testing import run_on_ranks


def _train(rank: int, folder: Path) -> None:
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


def test_ranks_agree(tmp_path: Path) -> None:
    run_on_ranks(_train, tmp_path)


def test_fsdp_is_refused() -> None:
    """Before anything changes; the sentence names what works."""
    sharded = FullyShardedDataParallel.__new__(FullyShardedDataParallel)
    nn.Module.__init__(sharded)
    model = nn.Sequential(nn.Linear(4, 4), sharded)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for refused in (
        lambda: sk.sparsify(model, 0.5),
        lambda: sk.Pruner(model, optimizer, sk.prune.RigL(density=0.5), total_steps=10),
    ):
        with pytest.raises(NotImplementedError, match=r"Expected a model whose.*FSDP.*Distributed"):
            refused()
    assert type(model[0]) is nn.Linear
