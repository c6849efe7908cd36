"""Sparse training on a device: loss scaling, CUDA graphs, torch.compile, changes of topology."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

import sparsekern as sk
from sparsekern.nn.convert import sparse_layers
from sparsekern.optim import MaskedAdamW
from sparsekern.prune import GMP, SET, Pruner, RigL, Static
from tests.gpu import cases
from tests.gpu.cases import CPU, on_devices

some_formats = pytest.mark.parametrize("format", ["csr", "bsr", "masked"])


def network(device: torch.device) -> nn.Module:
    """64 to 192, 192 and 16: enough blocks of 16 x 16 for every update to move some."""
    torch.manual_seed(0)
    layers = [nn.Linear(64, 192), nn.GELU(), nn.Linear(192, 192), nn.GELU(), nn.Linear(192, 16)]
    return nn.Sequential(*layers).to(device)


def batch(step: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The same numbers on every device."""
    generator = torch.Generator().manual_seed(step)
    x, y = torch.randn(32, 64, generator=generator), torch.randn(32, 16, generator=generator)
    return x.to(device), y.to(device)


def pattern_of(format: str) -> sk.patterns.Pattern:
    return sk.patterns.Block(16, 16) if format == "bsr" else sk.patterns.UNSTRUCTURED


def rigl(model: nn.Module, optimizer: torch.optim.Optimizer, format: str) -> Pruner:
    """Updates at every other step."""
    method = RigL(
        density=0.25, update_every=2, drop_fraction=0.5, end=1.0, pattern=pattern_of(format)
    )
    return Pruner(model, optimizer, method, total_steps=60, format=format)


def sgd(model: nn.Module, lr: float = 0.05) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)


@on_devices
@some_formats
@pytest.mark.parametrize("method", [SET, RigL], ids=lambda method: method.name)
def test_topology_changes_as_on_the_cpu(method: type, format: str, device: torch.device) -> None:
    """The first update (one with the dense gradient for RigL) gives the CPU's masks but for ties of
    rounding; later ones keep the count, the invariants and exact zeros."""
    models = [network(CPU), network(CPU)]
    models[1] = models[1].to(device)
    pruners = []
    for model in models:
        options = {"density": 0.25, "update_every": 1, "drop_fraction": 0.3, "end": 1.0}
        chosen = method(**options, pattern=pattern_of(format))
        pruners.append(Pruner(model, sgd(model), chosen, total_steps=50, format=format))
    masks = []
    for model, pruner in zip(models, pruners, strict=True):
        for step in range(3):
            x, y = batch(step, model[0].format.parameter.device)
            nn.functional.mse_loss(model(x), y).backward()
            pruner.step()
            pruner.optimizer.zero_grad()
        masks.append([layer.mask().cpu() for layer in sparse_layers(model).values()])
        for layer in sparse_layers(model).values():
            layer.format.validate()
            assert not layer.weight[~layer.mask()].any()
    for here, there in zip(*masks, strict=True):
        assert int(here.sum()) == int(there.sum())
        assert (here == there).float().mean() > 0.9


@on_devices
def test_dense_masters_on_a_schedule(device: torch.device) -> None:
    """GMP prunes to its density on the device, and ends compact."""
    model = network(device)
    pruner = Pruner(model, sgd(model), GMP(density=0.1, update_every=2), total_steps=20)
    for step in range(20):
        x, y = batch(step, device)
        nn.functional.mse_loss(model(x), y).backward()
        pruner.step()
        pruner.optimizer.zero_grad()
    assert pruner.density == pytest.approx(0.1, abs=0.01)
    pruner.compact()
    x, y = batch(99, device)
    nn.functional.mse_loss(model(x), y).backward()
    pruner.step()


@on_devices
@some_formats
@pytest.mark.parametrize("name", ["sgd", "adamw", "masked_adamw"])
def test_scaled_training_equals_unscaled(name: str, format: str, device: torch.device) -> None:
    """A power of two changes no bit, in steps and in the gradients that RigL grows by; ours unscale
    inside of their own pass."""
    results = []
    for scaled in (False, True):
        model = network(device)
        pruner = rigl(model, optimizer_of(name, model, device), format)
        scaler = torch.amp.GradScaler(device.type, init_scale=1024.0, enabled=scaled)
        for step in range(8):
            x, y = batch(step, device)
            scaler.scale(nn.functional.mse_loss(model(x), y)).backward()
            pruner.step(scaler=scaler)
            scaler.update()
            pruner.optimizer.zero_grad()
        results.append(model)
    assert cases.same(results)


@on_devices
@some_formats
def test_an_overflow_changes_nothing_but_the_scale(format: str, device: torch.device) -> None:
    """Neither weights nor masks; the update that was due comes with the next finite step."""
    model = network(device)
    pruner = rigl(model, sgd(model), format)
    scaler = torch.amp.GradScaler(device.type, init_scale=1024.0)
    due = []
    for step in range(6):
        x, y = batch(step, device)
        before = copy.deepcopy(model)
        loss = nn.functional.mse_loss(model(x), y)
        overflow = step == 2  # an update's step
        scaler.scale(loss * float("inf") if overflow else loss).backward()
        pruner.step(scaler=scaler)
        scaler.update()
        pruner.optimizer.zero_grad()
        masks = [
            torch.equal(a.mask(), b.mask())
            for a, b in zip(
                sparse_layers(before).values(), sparse_layers(model).values(), strict=True
            )
        ]
        due.append(not all(masks))
        assert cases.same([before, model]) == overflow
    assert scaler.get_scale() == 512.0
    assert not due[2]
    assert due[3]


@on_devices
@some_formats
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_mixed_precision_learns(format: str, device: torch.device, dtype: torch.dtype) -> None:
    """Autocast and GradScaler together; the loss on one batch falls."""
    model = network(device)
    pruner = rigl(model, sgd(model, lr=1.0), format)
    scaler = torch.amp.GradScaler(device.type, init_scale=1024.0, enabled=dtype == torch.float16)
    x, y = batch(0, device)
    losses = []
    for _ in range(24):
        with torch.autocast(device.type, dtype):
            loss = nn.functional.mse_loss(model(x).float(), y)
        scaler.scale(loss).backward()
        pruner.step(scaler=scaler)
        scaler.update()
        pruner.optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]
    assert all(p.dtype == torch.float32 for p in model.parameters())


@contextmanager
def never_waiting(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing inside waits for the device: torch's own check on a GPU; on the CPU, none of what
    would make a GPU's host wait is called."""
    if device.type == "cuda":
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return

    def wait(*_: object, **__: object) -> None:
        raise AssertionError("the host waits for the device")

    with monkeypatch.context() as patch:
        for name in ("item", "tolist", "nonzero", "__bool__", "__int__", "__float__"):
            patch.setattr(Tensor, name, wait)
        yield


@on_devices
@some_formats
@pytest.mark.parametrize("name", ["sgd", "masked_adamw"])
def test_a_step_never_waits(
    name: str, format: str, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forward, backward and an ordinary step of a Pruner: the host runs ahead of the device."""
    model = network(device)
    optimizer = optimizer_of(name, model, device)
    method = Static(density=0.25, pattern=pattern_of(format))
    pruner = Pruner(model, optimizer, method, total_steps=50, format=format)
    scaler = torch.amp.GradScaler(device.type, init_scale=1024.0, enabled=name == "masked_adamw")
    x, y = batch(0, device)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16):
            loss = nn.functional.mse_loss(model(x).float(), y)
        scaler.scale(loss).backward()
        pruner.step(scaler=scaler if scaler.is_enabled() else None)
        optimizer.zero_grad()

    for _ in range(2):
        step()  # kernels are compiled, states are made
        scaler.update()
    with never_waiting(device, monkeypatch):
        step()


def test_waiting_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    with never_waiting(CPU, monkeypatch), pytest.raises(AssertionError, match="the host waits"):
        torch.ones(1).item()
    assert torch.ones(1).item() == 1


# CUDA graphs


def captured(step: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """The step as a CUDA graph, after three runs on another stream as torch wants it; on the CPU
    the step itself, after as many runs."""
    if device.type != "cuda":
        for _ in range(3):
            step()
        return step
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    # Capturing runs nothing, so the graph is as many steps behind as the CPU's step.
    return graph.replay


def pointers(model: nn.Module) -> list[int]:
    """Where the model's tensors lie, those of layouts that are not saved among them."""
    tensors = [*model.parameters(), *model.buffers()]
    return [tensor.data_ptr() for tensor in tensors]


def optimizer_of(name: str, model: nn.Module, device: torch.device) -> torch.optim.Optimizer:
    if name == "sgd":
        return sgd(model)
    if name == "adamw":
        capturable = {"capturable": True} if device.type == "cuda" else {}
        return torch.optim.AdamW(model.parameters(), lr=1e-3, **capturable)
    return MaskedAdamW(model.parameters(), lr=1e-3, model=model, capturable=True)


@on_devices
@some_formats
@pytest.mark.parametrize("name", ["sgd", "adamw", "masked_adamw"])
def test_a_captured_step_equals_the_step(name: str, format: str, device: torch.device) -> None:
    """A whole training step in a graph, replayed over new batches and over a new topology of equal
    count, which is written in place."""
    model = network(device)
    sk.sparsify(model, 0.25, pattern=pattern_of(format), distribution="uniform", format=format)
    twin = copy.deepcopy(model)
    x, y = batch(0, device)
    steps = []
    for each in (model, twin):
        optimizer = optimizer_of(name, each, device)

        def step(each: nn.Module = each, optimizer: torch.optim.Optimizer = optimizer) -> None:
            optimizer.zero_grad(set_to_none=True)
            nn.functional.mse_loss(each(x), y).backward()
            optimizer.step()
            for layer in sparse_layers(each).values():
                if layer.format.name == "masked" and name != "masked_adamw":
                    layer.format.remask_()

        steps.append(step)
    replay = captured(steps[0], device)
    for _ in range(3):
        steps[1]()
    for number in range(6):
        for place, value in zip((x, y), batch(number, device), strict=True):
            place.copy_(value)
        if number == 3:
            places = pointers(model)
            for each in (model, twin):
                for layer in sparse_layers(each).values():
                    layer.set_mask(layer.mask().flip(0))
            assert pointers(model) == places
        replay()
        steps[1]()
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    for a, b in zip(sparse_layers(model).values(), sparse_layers(twin).values(), strict=True):
        assert torch.equal(a.mask(), b.mask())


# torch.compile


@on_devices
@some_formats
def test_compiles_without_a_break(format: str, device: torch.device) -> None:
    """``fullgraph=True`` with the device's own backend; as exact as eager."""
    torch._dynamo.reset()
    dense, x = cases.linear_case()
    dense, keep = cases.masked(dense, format)
    layer = cases.sparse(dense, keep, format).to(device)
    backend = "inductor" if device.type == "cuda" else "aot_eager"
    compiled = torch.compile(layer, fullgraph=True, backend=backend)

    def call(module: nn.Module, x: Tensor) -> Tensor:
        return compiled(x) if module is layer else module(x)

    cases.compare(layer, dense, keep, x, device, call)


@on_devices
@some_formats
def test_updates_do_not_recompile(format: str, device: torch.device) -> None:
    """Two graphs (dense gradient armed or not), then none over ten updates of RigL."""
    torch._dynamo.reset()
    model = network(device)
    pruner = rigl(model, sgd(model), format)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    frames, updates = [], 0
    for step in range(24):
        x, y = batch(step, device)
        before = pruner.layers[0].format.mask()
        nn.functional.mse_loss(compiled(x), y).backward()
        pruner.step()
        pruner.optimizer.zero_grad()
        updates += not torch.equal(before, pruner.layers[0].format.mask())
        frames.append(counter.frame_count)
    assert updates >= 10
    assert frames[2] == frames[-1] == 2


@on_devices
def test_a_run_goes_on_elsewhere(device: torch.device) -> None:
    """State of model, optimiser and Pruner saved on the device, loaded on the CPU, and back."""
    model = network(device)
    pruner = Pruner(model, sgd(model), Static(density=0.25), total_steps=50, format="csr")
    for step in range(3):
        x, y = batch(step, device)
        nn.functional.mse_loss(model(x), y).backward()
        pruner.step()
        pruner.optimizer.zero_grad()
    twin = network(CPU)
    other = Pruner(twin, sgd(twin), Static(density=0.25), total_steps=50, format="csr")
    twin.load_state_dict(model.state_dict())
    # torch shares the tensors of a state that is on the right device already.
    other.optimizer.load_state_dict(copy.deepcopy(pruner.optimizer.state_dict()))
    other.load_state_dict(pruner.state_dict())
    for each, stepper, place in ((model, pruner, device), (twin, other, CPU)):
        x, y = batch(3, place)
        nn.functional.mse_loss(each(x), y).backward()
        stepper.step()
    assert other.steps == pruner.steps
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a.cpu(), b, rtol=1e-4, atol=1e-5)
