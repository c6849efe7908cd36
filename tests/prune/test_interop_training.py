"""Sparse training with what torch offers: optimisers, schedulers, compile, autocast, export."""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.optim import Optimizer, lr_scheduler

import sparsekern as sk
from sparsekern.nn import SparseConv2d, SparseLinear, sparse_layers
from sparsekern.prune import Pruner, RigL


class Lion(Optimizer):
    """As people write it: Chen et al., Symbolic Discovery of Optimization Algorithms, 2023."""

    def __init__(self, params: Any, lr: float = 1e-3, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                m = self.state[p].setdefault("m", torch.zeros_like(p))
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(m.mul(0.9).add(p.grad, alpha=0.1).sign(), alpha=-group["lr"])
                m.mul_(0.99).add_(p.grad, alpha=0.01)


OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "sgd": lambda p, **o: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.01, **o),
    "adam": lambda p, **o: torch.optim.Adam(p, lr=0.01, weight_decay=0.01, **o),
    "adamw": lambda p, **o: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1, **o),
    "rmsprop": lambda p, **o: torch.optim.RMSprop(p, lr=0.01, momentum=0.9, centered=True, **o),
    "adagrad": lambda p, **o: torch.optim.Adagrad(p, lr=0.05, **o),
    "lion": lambda p, **o: Lion(p, lr=0.01, weight_decay=0.1),
}
WAYS = {"foreach": {"foreach": True}, "loop": {"foreach": False}, "fused": {"fused": True}}
CASES = [
    pytest.param(name, way, id=f"{name}-{way}")
    for name in OPTIMIZERS
    for way in WAYS
    if not (name == "lion" and way != "loop") and not (name == "rmsprop" and way == "fused")
]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(32, 48), nn.Tanh(), nn.Linear(48, 48), nn.Tanh(), nn.Linear(48, 4)
    )


def data(step: int, size: int = 16) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(size, 32, generator=generator), torch.randn(size, 4, generator=generator)


def loss_of(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return nn.functional.mse_loss(model(x), y)


def rigl(model: nn.Module, optimizer: Optimizer, **options: Any) -> Pruner:
    method = RigL(density=0.2, update_every=3, drop_fraction=0.5, end=1.0)
    return Pruner(model, optimizer, method, total_steps=40, **options)


@pytest.mark.parametrize("format", ["csr", "masked"])
@pytest.mark.parametrize(("name", "way"), CASES)
def test_optimizers_equal_a_masked_dense_run(name: str, way: str, format: str) -> None:
    """Weights and state after topology changes, against masks multiplied into a dense run.

    In float64: centered RMSprop divides by nearly nothing where a gradient is nearly zero, and so
    makes any difference of order in float32 sums a thousand times as large.
    """
    dense, sparse = network().double(), network().double()
    optimizer = OPTIMIZERS[name](sparse.parameters(), **WAYS[way])
    pruner = rigl(sparse, optimizer, format=format)
    layers = sparse_layers(sparse)
    plain = OPTIMIZERS[name](dense.parameters(), **WAYS[way])
    weights = {n: dense.get_submodule(n).weight for n in layers}

    def remask() -> None:
        for n, layer in layers.items():
            state = [v for v in plain.state[weights[n]].values() if v.shape == weights[n].shape]
            for tensor in (weights[n].data, *state):
                tensor.mul_(layer.mask())

    remask()
    for step in range(10):
        x, y = (t.double() for t in data(step))
        updating = pruner.method.is_update(pruner.clock)
        for model in (sparse, dense):
            loss_of(model, x, y).backward()
        for n, layer in layers.items():
            weights[n].grad.mul_(layer.mask())
        before = [layer.mask() for layer in layers.values()]
        pruner.step()
        if updating:
            assert not any(map(torch.equal, before, [layer.mask() for layer in layers.values()]))
        else:
            plain.step()
        remask()
        optimizer.zero_grad()
        plain.zero_grad()
    for n, layer in layers.items():
        torch.testing.assert_close(layer.weight, weights[n], atol=1e-11, rtol=1e-9)
        state = optimizer.state[layer.format.parameter]
        for key, value in plain.state[weights[n]].items():
            if value.shape == weights[n].shape:
                got = layer.format.active_values(state[key])
                torch.testing.assert_close(got, value[layer.mask()], atol=1e-11, rtol=1e-9)
    torch.testing.assert_close(sparse[0].bias, dense[0].bias, atol=1e-11, rtol=1e-9)


@pytest.mark.parametrize(
    "build",
    [
        lambda o: lr_scheduler.CosineAnnealingLR(o, 20),
        lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=20),
        lambda o: lr_scheduler.StepLR(o, 3),
        lambda o: lr_scheduler.LambdaLR(o, lambda step: 0.9**step),
    ],
    ids=["cosine", "onecycle", "step", "lambda"],
)
def test_schedulers_do_not_warn(build: Callable[[Optimizer], lr_scheduler.LRScheduler]) -> None:
    """Also where a topology update replaces the optimiser's step."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    pruner = Pruner(model, optimizer, RigL(density=0.2, update_every=1), total_steps=20)
    scheduler = build(optimizer)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for step in range(12):
            loss_of(model, *data(step)).backward()
            pruner.step()
            scheduler.step()
            optimizer.zero_grad()
    assert scheduler.last_epoch == 12


def test_accumulation_equals_one_batch() -> None:
    """Four micro-batches take the steps and updates of one batch."""
    results = []
    for pieces in (1, 4):
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        pruner = rigl(model, optimizer, format="csr")
        for step in range(8):
            x, y = data(step)
            for piece in zip(x.chunk(pieces), y.chunk(pieces), strict=True):
                (loss_of(model, *piece) / pieces).backward()
            pruner.step()
            optimizer.zero_grad()
        results.append(model)
    for a, b in zip(*(sparse_layers(model).values() for model in results), strict=True):
        assert torch.equal(a.mask(), b.mask())
        torch.testing.assert_close(a.weight, b.weight, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("format", ["csr", "masked"])
def test_compiles_without_recompilation_over_ten_updates(format: str) -> None:
    """Two graphs (dense gradient armed or not), then none, however the topology changes."""
    torch._dynamo.reset()
    model, eager = network(), network()
    counter = CompileCounterWithBackend("aot_eager")
    pruners = []
    for net in (model, eager):
        optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
        method = RigL(density=0.2, update_every=2, drop_fraction=0.5, end=1.0)
        pruners.append(Pruner(net, optimizer, method, total_steps=60, format=format))
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    frames, updates, errors = [], 0, 0
    for step in range(24):
        x, y = data(step)
        before = pruners[0].layers[0].mask()
        for net, pruner in ((compiled, pruners[0]), (eager, pruners[1])):
            loss_of(net, x, y).backward()
            pruner.step()
            pruner.optimizer.zero_grad()
        updates += not torch.equal(before, pruners[0].layers[0].mask())
        frames.append(counter.frame_count)
        errors += torch._dynamo.utils.counters["stats"].get("graph_break", 0)
    assert updates >= 10
    assert frames[2] == frames[-1] == 2
    assert errors == 0
    for a, b in zip(pruners[0].layers, pruners[1].layers, strict=True):
        assert torch.equal(a.mask(), b.mask())
        torch.testing.assert_close(a.format.to_dense(), b.format.to_dense())


@pytest.mark.parametrize("format", ["csr", "masked"])
def test_autocast_bfloat16(format: str) -> None:
    """bfloat16 activations, float32 weights and gradients, as nn.Linear under autocast."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    pruner = rigl(model, optimizer, format=format)
    reference = sk.densify(model)
    x, y = data(0, 64)
    losses = []
    for net in (model, reference):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = net(x)
            losses.append(nn.functional.mse_loss(out.float(), y))
        assert out.dtype == torch.bfloat16
    torch.testing.assert_close(losses[0], losses[1], atol=0.02, rtol=0.02)
    for loss in losses:
        loss.backward()
    layer = model[0]
    gradient = layer.format.active_values(layer.format.parameter.grad)
    assert gradient.dtype == torch.float32
    right = reference[0].weight.grad[layer.mask()]
    assert (gradient - right).norm() < 0.05 * right.norm()
    first = losses[0].item()
    for _ in range(20):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = nn.functional.mse_loss(model(x).float(), y)
        loss.backward()
        pruner.step()
    assert loss.item() < 0.95 * first


@pytest.mark.parametrize("format", ["csr", "masked"])
def test_autocast_of_convolutions(format: str) -> None:
    layer = SparseConv2d(16, 8, 3, padding=1, density=0.2, format=format)
    x = torch.randn(2, 16, 6, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, right = layer(x), layer.to_dense()(x)
    assert out.dtype == right.dtype == torch.bfloat16
    torch.testing.assert_close(out, right, atol=0.02, rtol=0.02)
    out.sum().backward()
    assert layer.format.parameter.grad.dtype == torch.float32


@pytest.mark.parametrize("format", ["csr", "masked"])
def test_export_and_reload(format: str) -> None:
    model = network().eval()
    sk.sparsify(model, 0.2, format=format)
    x, _ = data(0)
    batch = torch.export.Dim("batch", min=2)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: batch},), strict=False)
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    again = torch.export.load(file).module()
    for size in (16, 5):
        x, _ = data(1, size)
        torch.testing.assert_close(again(x), model(x))


def test_onnx_of_the_densified_model(tmp_path: Any) -> None:
    pytest.importorskip("onnxscript")
    onnx = pytest.importorskip("onnx")
    reference = pytest.importorskip("onnx.reference")
    model = network().eval()
    sk.sparsify(model, 0.2)
    x, _ = data(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(sk.densify(model), (x,), dynamo=True, verbose=False)
    program.save(tmp_path / "model.onnx")
    loaded = onnx.load(tmp_path / "model.onnx")
    onnx.checker.check_model(loaded)
    got = reference.ReferenceEvaluator(loaded).run(None, {loaded.graph.input[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(got[0]), model(x).detach(), atol=1e-5, rtol=1e-4)


def test_pretrained_weights_then_sparse() -> None:
    """A dense checkpoint is loaded, pruned and trained on."""
    trained = network()
    state = copy.deepcopy(trained.state_dict())
    model = network()
    model.load_state_dict(state)
    sk.sparsify(model, 0.5, format="csr")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    pruner = Pruner(model, optimizer, RigL(density=0.5, update_every=5), total_steps=100)
    x, y = data(0, 64)
    losses = []
    for _ in range(30):
        loss = loss_of(model, x, y)
        loss.backward()
        pruner.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    assert isinstance(model[0], SparseLinear)
