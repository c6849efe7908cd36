"""fuse_activations: the same model, its activations applied by the layers before them."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparsekern as sk
from sparsekern._extension import native
from sparsekern.nn.fuse import fused_activations

FORMATS: dict[str, Callable[[int, int], sk.nn.SparseLinear]] = {
    "csr": lambda i, o: sk.nn.SparseLinear(i, o, density=0.2, format="csr"),
    "csr_dense": lambda i, o: with_variant(i, o, "csr", "dense"),
    "bsr": lambda i, o: sk.nn.SparseLinear(i, o, density=0.5, format="bsr", block_shape=(4, 4)),
    "condensed": lambda i, o: sk.nn.SparseLinear(i, o, density=0.2, format="condensed"),
    "masked_dense": lambda i, o: with_variant(i, o, "masked", "dense"),
    "masked_csr": lambda i, o: with_variant(i, o, "masked", "csr"),
}
ACTIVATIONS = {
    "relu": nn.ReLU,
    "relu_in_place": lambda: nn.ReLU(inplace=True),
    "gelu": nn.GELU,
    "gelu_tanh": lambda: nn.GELU(approximate="tanh"),
}


def with_variant(i: int, o: int, format: str, variant: str) -> sk.nn.SparseLinear:
    layer = sk.nn.SparseLinear(i, o, density=0.2, format=format)
    layer.format.variant = variant
    return layer


def small(activation: str = "relu", format: str = "csr") -> nn.Sequential:
    make = FORMATS[format]
    return nn.Sequential(make(24, 32), ACTIVATIONS[activation](), nn.Dropout(0.0), make(32, 8))


def outputs(model: nn.Module, x: Tensor) -> list[Tensor]:
    """What the model gives, with and without gradients, and those."""
    x = x.clone().requires_grad_()
    y = model(x)
    gradients = torch.autograd.grad(y.sin().sum(), [x, *model.parameters()])
    with torch.no_grad():
        return [model(x), y.detach(), *gradients]


@pytest.mark.parametrize("format", ["csr", "bsr", "masked", "dense", "csr_of_a_dense_master"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_convolutions(activation: str, format: str) -> None:
    stored = {"dense": "csr", "csr_of_a_dense_master": "masked"}.get(format, format)
    conv = nn.Conv2d(8, 12, 3, padding=1, stride=2)
    block_shape = (4, 4) if format == "bsr" else None
    layer = sk.nn.SparseConv2d.from_dense(conv, 0.3, format=stored, block_shape=block_shape)
    if format in ("dense", "csr_of_a_dense_master"):
        layer.format.variant = "dense" if format == "dense" else "csr"
    model = nn.Sequential(layer, ACTIVATIONS[activation](), nn.MaxPool2d(2))
    x = torch.randn(3, 8, 19, 9)
    before = [outputs(model, each) for each in (x, x.to(memory_format=torch.channels_last))]
    assert sk.nn.fuse_activations(model) == ["0"]
    after = [outputs(model, each) for each in (x, x.to(memory_format=torch.channels_last))]
    for got, right in zip(after, before, strict=True):
        for a, b in zip(got, right, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model(x[0]), before[0][1][0], rtol=1e-5, atol=1e-5)
    dense = sk.densify(model)
    torch.testing.assert_close(dense(x), before[0][1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("batch", [1, 5, 40])
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_same_outputs_and_gradients(activation: str, format: str, batch: int) -> None:
    model = small(activation, format)
    x = torch.randn(batch, 24)
    before = outputs(model, x)
    assert sk.nn.fuse_activations(model) == ["0"]
    for a, b in zip(outputs(model, x), before, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def runs(model: nn.Module, x: Tensor) -> tuple[Tensor, set[str]]:
    """The outputs, and the ops and functions that ran."""
    with torch.no_grad(), torch.profiler.profile() as found:
        y = model(x)
    return y, {event.key for event in found.key_averages()}


def test_no_activation_runs_of_its_own() -> None:
    if not native.loaded:
        pytest.skip("no native library")
    model = small("gelu")
    x = torch.randn(3, 24)
    assert "aten::gelu" in runs(model, x)[1]
    sk.nn.fuse_activations(model)
    assert "aten::gelu" not in runs(model, x)[1]


def test_nothing_but_the_execution_changes(tmp_path: Path) -> None:
    model = nn.Sequential(small(), nn.ReLU(), small("gelu"))
    names = [name for name, _ in model.named_modules()]
    state = copy.deepcopy(model.state_dict())
    sk.save(model, tmp_path / "before.safetensors")
    assert sk.nn.fuse_activations(model) == ["0.0", "2.0"]
    assert sk.nn.fuse_activations(model) == ["0.0", "2.0"]
    assert [name for name, _ in model.named_modules()] == names
    assert type(model) is nn.Sequential  # without a pair of its own
    assert isinstance(model[0], nn.Sequential)
    assert type(model[0][1]) is nn.ReLU
    assert list(model.state_dict()) == list(state)
    sk.save(model, tmp_path / "after.safetensors")
    stored = [(tmp_path / f"{name}.safetensors").read_bytes() for name in ("before", "after")]
    assert stored[0] == stored[1]
    model.load_state_dict(state)
    sk.nn.unfuse_activations(model)
    assert type(model[0]) is nn.Sequential
    assert fused_activations(model) == {}


@pytest.mark.parametrize("copied", ["deepcopy", "pickle", "slice"])
def test_copies_keep_the_choice(copied: str) -> None:
    model = small()
    sk.nn.fuse_activations(model)
    if copied == "deepcopy":
        other: Any = copy.deepcopy(model)
    elif copied == "slice":
        other = model[:]
    else:
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        other = torch.load(file, weights_only=False)
    assert fused_activations(other) == {"0": "relu"}
    x = torch.randn(7, 24)
    assert torch.equal(other(x), model(x))


def test_densify_gives_plain_torch() -> None:
    model = small("gelu")
    sk.nn.fuse_activations(model)
    dense = sk.densify(model)
    assert type(dense) is nn.Sequential
    assert [type(module) for module in dense] == [nn.Linear, nn.GELU, nn.Dropout, nn.Linear]
    x = torch.randn(7, 24)
    torch.testing.assert_close(dense(x), model(x), rtol=1e-5, atol=1e-6)
    assert fused_activations(model) == {"0": "gelu"}


def test_replaced_layers_lose_no_activation() -> None:
    model = small()
    sk.nn.fuse_activations(model)
    model[0] = nn.Linear(24, 32)
    x = torch.randn(4, 24)
    with torch.no_grad():
        assert torch.equal(model(x), model[3](torch.relu(model[0](x))))
        model[0] = sk.nn.SparseLinear(24, 32)
        model[1] = nn.Tanh()
        assert torch.equal(model(x), model[3](torch.tanh(model[0](x))))
    assert fused_activations(model) == {}


def test_shared_activation_and_bare_calls() -> None:
    """One ReLU in many places, and modules called by themselves, do as they say."""
    relu = nn.ReLU()
    model = nn.Sequential(
        FORMATS["csr"](24, 24), relu, nn.LayerNorm(24), relu, FORMATS["csr"](24, 9), relu
    )
    x = torch.randn(6, 24)
    before = model(x)
    assert sk.nn.fuse_activations(model) == ["0", "4"]
    assert torch.equal(model(x), before)
    for module in model:
        x = module(x)
    assert torch.equal(x, before)
    assert (relu(torch.tensor(-1.0)), relu(torch.tensor(2.0))) == (0, 2)


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("kind", ["forward", "forward_pre", "full_backward", "full_backward_pre"])
def test_hooks_see_what_they_would(place: int, kind: str) -> None:
    model = small()
    seen: list[list[Tensor]] = []

    def note(_: nn.Module, *given: Any) -> None:
        flat = [part if isinstance(part, tuple) else (part,) for part in given]
        seen.append([tensor.detach().clone() for part in flat for tensor in part])

    handle = getattr(model[place], f"register_{kind}_hook")(note)
    x = torch.randn(5, 24, requires_grad=True)
    model(x).sum().backward()
    assert sk.nn.fuse_activations(model) == []
    model(x).sum().backward()
    assert len(seen) == 2
    assert all(torch.equal(a, b) for a, b in zip(*seen, strict=True))
    handle.remove()
    assert fused_activations(model) == {"0": "relu"}
    model(x).sum().backward()
    assert len(seen) == 2


def test_global_hooks_see_every_module() -> None:
    model = small()
    sk.nn.fuse_activations(model)
    seen = []
    handle = nn.modules.module.register_module_forward_hook(lambda m, *_: seen.append(type(m)))
    try:
        model(torch.randn(2, 24))
    finally:
        handle.remove()
    assert nn.ReLU in seen


def test_subclasses_and_functions_are_left_alone() -> None:
    class Own(nn.Sequential):
        pass

    class Clipped(nn.ReLU):
        def forward(self, input: Tensor) -> Tensor:
            return input.clamp(0, 1)

    layer = FORMATS["csr"](24, 8)
    assert sk.nn.fuse_activations(Own(layer, nn.ReLU())) == []
    assert sk.nn.fuse_activations(nn.Sequential(layer, Clipped())) == []
    assert sk.nn.fuse_activations(nn.Sequential(layer, nn.Identity(), nn.ReLU())) == []
    assert sk.nn.fuse_activations(nn.Sequential(nn.Linear(24, 8), nn.ReLU())) == []
    assert sk.nn.fuse_activations(layer) == []
    with pytest.raises(TypeError, match="Expected model to be"):
        sk.nn.fuse_activations([layer])
    with pytest.raises(ValueError, match="Expected activation to be none, relu, gelu or gelu_tanh"):
        layer(torch.zeros(1, 24), activation="swish")


def test_explain_names_what_is_fused() -> None:
    model = nn.Sequential(small(), small("relu", "masked_dense"), small("gelu", "bsr"))
    sk.nn.fuse_activations(model)
    rows = {row.names[0]: row.why for row in sk.explain(model).rows}
    fused = [name for name, why in rows.items() if "relu fused" in why]
    assert fused == (["0.0"] if native.loaded else [])


@pytest.mark.skipif(not native.loaded, reason="no native library")
@pytest.mark.parametrize("batch", [1, 16, 17])
def test_condensed_keeps_its_small_batches(batch: int) -> None:
    """Fused or not, few rows without gradients run its own kernels: the same bits."""
    model, x = small("gelu", "condensed"), torch.randn(batch, 24)
    with torch.no_grad():
        apart = model(x)
        sk.nn.fuse_activations(model)
        with torch.profiler.profile() as found:
            fused = model(x)
    kernels = {event.key for event in found.key_averages()}
    assert ("sparsekern::condensed_linear" in kernels) == (batch <= 16)
    if batch <= 16:
        assert torch.equal(fused, apart)
    torch.testing.assert_close(fused, apart)
    assert "gelu fused" in str(sk.explain(model))


def test_tuned_and_measured_while_fused() -> None:
    model = small()
    sk.nn.fuse_activations(model)
    x = torch.randn(16, 24)
    right = model(x)
    sk.tune(model, x, cache=False)
    assert sk.explain(model, x, cache=False).rows[0].ms is not None
    torch.testing.assert_close(model(x), right, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_compiles_and_exports(activation: str) -> None:
    model = small(activation)
    sk.nn.fuse_activations(model)
    x = torch.randn(5, 24)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for a, b in zip(outputs(compiled, x), outputs(model, x), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
    exported = torch.export.export(model, (x,)).module()
    torch.testing.assert_close(exported(x), model(x), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_autocast(activation: str) -> None:
    model = small(activation)
    x = torch.randn(20, 24)
    with torch.autocast("cpu", torch.bfloat16):
        right = model(x)
        sk.nn.fuse_activations(model)
        y = model(x)
        y.sum().backward()
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y, right, rtol=2e-2, atol=2e-2)


def test_trains_as_before() -> None:
    """RigL with a changing topology, its dense gradients and all: the same weights in the end."""
    results = []
    for fused in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, 8))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        method = sk.prune.RigL(density=0.3, update_every=3, drop_fraction=0.3, end=0.75)
        pruner = sk.prune.Pruner(model, optimizer, method, total_steps=20)
        if fused:
            assert sk.nn.fuse_activations(model) == ["0"]
        for _ in range(20):
            optimizer.zero_grad()
            model(torch.randn(30, 24)).square().mean().backward()
            pruner.step()
        results.append([p.detach() for p in model.parameters()])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


def test_nested_batches() -> None:
    model = small()
    parts = [torch.randn(3, 24), torch.randn(5, 24)]
    right = model(torch.cat(parts))
    sk.nn.fuse_activations(model)
    nested = model[:2](torch.nested.nested_tensor(parts, layout=torch.jagged))
    torch.testing.assert_close(model[3](nested.values()), right)
