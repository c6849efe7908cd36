"""Two gloo processes: indices stay out of the broadcasts, traffic follows the kept weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import sparsekern as sk
from sparsekern.nn import sparse_layers
from sparsekern.prune import Pruner, RigL
from sparsekern.testing import run_on_ranks

STEPS = 9


def _network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4)
    )


def _pruner(model: nn.Module, seed: int = 0) -> tuple[Pruner, torch.optim.Optimizer]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    method = RigL(density=0.1, update_every=2, drop_fraction=0.5)
    return Pruner(model, optimizer, method, total_steps=20, seed=seed), optimizer


def _batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(16, 32, generator=generator), torch.randint(4, (16,), generator=generator)


def _train(rank: int, folder: Path) -> None:
    _topologies_agree(rank)
    model = _network()
    pruner, optimizer = _pruner(model, seed=rank)
    parallel = DistributedDataParallel(model)
    sent = []

    def count(state, bucket):  # DDP refuses annotations that are text
        sent.append(bucket.buffer().nbytes)
        work = dist.all_reduce(bucket.buffer() / 2, async_op=True)
        return work.get_future().then(lambda future: future.value()[0])

    parallel.register_comm_hook(None, count)
    assert parallel.modules_buffers == []  # nothing is broadcast at a forward pass
    for step in range(STEPS):
        x, y = (part[8 * rank : 8 * rank + 8] for part in _batch(step))
        nn.functional.cross_entropy(parallel(x), y).backward()
        pruner.step()
        optimizer.zero_grad()
    assert sum(sent) == STEPS * sum(p.nbytes for p in model.parameters())
    assert sum(sent) < 0.15 * STEPS * sum(p.nbytes for p in _network().parameters())
    for layer in pruner.layers:
        layer.format.validate()
    torch.save(model.state_dict(), folder / f"rank{rank}")


def _topologies_agree(rank: int) -> None:
    """Random masks of different counts on the two ranks become those of rank 0."""
    model = _network()
    generator = torch.Generator().manual_seed(rank)
    sk.sparsify(model, (0.1, 0.2)[rank], score="random", format="csr", generator=generator)
    before = [layer.mask() for layer in sparse_layers(model).values()]
    sk.nn.ddp_ignore(model)
    for layer, old in zip(sparse_layers(model).values(), before, strict=True):
        layer.format.validate()
        right = old.to(torch.uint8)
        dist.broadcast(right, 0)
        assert torch.equal(layer.mask(), right.bool())
    parallel = DistributedDataParallel(model)
    parallel(torch.ones(2, 32)).sum().backward()


def test_two_ranks(tmp_path: Path) -> None:
    """Both ranks end with the same model, which one process on the whole batch ends with too."""
    run_on_ranks(_train, tmp_path)
    first, second = (torch.load(tmp_path / f"rank{rank}") for rank in (0, 1))
    assert all(torch.equal(first[key], second[key]) for key in first)
    model = _network()
    pruner, optimizer = _pruner(model)
    for step in range(STEPS):
        x, y = _batch(step)
        nn.functional.cross_entropy(model(x), y).backward()
        pruner.step()
        optimizer.zero_grad()
    for key, value in model.state_dict().items():
        torch.testing.assert_close(first[key], value, atol=1e-6, rtol=1e-5)


def test_names_and_wrapped_models(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8))
    sk.sparsify(model, 0.2, format="csr")
    model._ddp_params_and_buffers_to_ignore = ["1.running_mean"]
    names = sk.nn.ddp_ignore(model)
    assert {"0.format.col", "0.format.perm", "0.format.version"} <= set(names)
    assert "0.format.values" not in names
    assert model._ddp_params_and_buffers_to_ignore == ["1.running_mean", *names]
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        wrapped = DistributedDataParallel(model)
        assert {id(b) for b in wrapped.modules_buffers} == {
            id(model[1].running_var),
            id(model[1].num_batches_tracked),
        }
        with pytest.raises(ValueError, match="Expected the model before it is wrapped"):
            sk.nn.ddp_ignore(wrapped)
    finally:
        dist.destroy_process_group()
