"""Modules of every format on a device: results, autocast, streams, copies, files."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import sparsekern as sk
from sparsekern.models import ViT
from sparsekern.nn import measure
from sparsekern.patterns import Block
from tests.gpu import cases
from tests.gpu.cases import CASES, CPU, formats, on_devices

kinds = pytest.mark.parametrize("kind", list(CASES))


def made(kind: str, format: str) -> tuple[nn.Module, Tensor, nn.Module, Tensor]:
    """A dense layer with zeros, its mask, its sparse twin and an input."""
    layer, x = CASES[kind]()
    dense, keep = cases.masked(layer, format)
    return dense, keep, cases.sparse(dense, keep, format), x


@on_devices
@formats
@kinds
def test_results(kind: str, format: str, device: torch.device) -> None:
    dense, keep, layer, x = made(kind, format)
    cases.compare(layer.to(device), dense, keep, x, device)


@on_devices
@formats
@kinds
def test_every_variant(kind: str, format: str, device: torch.device) -> None:
    """Each kernel that the layer may be asked for, where it runs on the device."""
    dense, keep, layer, x = made(kind, format)
    layer = layer.to(device)
    ran = 0
    for name in layer.format.variants:
        layer.format.variant = name
        try:
            with torch.no_grad():
                layer(x.to(device))
        except NotImplementedError:
            continue
        layer.zero_grad()
        cases.compare(layer, dense, keep, x, device)
        ran += 1
    assert ran


@on_devices
@formats
@kinds
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(kind: str, format: str, device: torch.device, dtype: torch.dtype) -> None:
    """Takes and returns autocast's dtype with float32 weights, no less exact than nn.Linear."""
    dense, keep, layer, x = made(kind, format)

    def call(module: nn.Module, x: Tensor) -> Tensor:
        if x.dtype == torch.float64:
            return module(x)
        with torch.autocast(device.type, dtype):
            y = module(x)
        assert y.dtype == dtype
        return y

    cases.compare(layer.to(device), dense, keep, x, device, call)
    assert layer.format.parameter.grad.dtype == torch.float32


@on_devices
@formats
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_other_dtypes(format: str, device: torch.device, dtype: torch.dtype) -> None:
    """Weights and inputs of that dtype."""
    dense, keep, layer, x = made("linear", format)
    dense = dense.to(dtype)
    layer = cases.sparse(dense, keep, format).to(device)
    y = layer(x.to(device, dtype))
    assert y.dtype == dtype
    cases.compare(layer, dense, keep, x.to(dtype), device)


@on_devices
@formats
def test_channels_last(format: str, device: torch.device) -> None:
    dense, keep, layer, x = made("conv2d", format)
    x = x.to(memory_format=torch.channels_last)
    cases.compare(layer.to(device), dense, keep, x, device)


@on_devices
@formats
def test_no_rows(format: str, device: torch.device) -> None:
    """An empty batch gives an empty output and zero gradients."""
    _, _, layer, x = made("linear", format)
    layer = layer.to(device)
    y = layer(x[:0].to(device))
    assert y.shape == (0, 11, 48)
    y.sum().backward()
    assert not layer.format.parameter.grad.any()


@on_devices
@formats
def test_moving_changes_nothing(format: str, device: torch.device) -> None:
    """To the device and back; copies; a change of mask on the device."""
    _, keep, layer, x = made("linear", format)
    before = copy.deepcopy(layer)
    layer = copy.deepcopy(layer.to(device))
    assert all(tensor.device == device for tensor in layer.state_dict().values())
    layer.format.validate()
    changed = keep.flip(0)
    for each in (layer, before):
        each.set_mask(changed.to(each.format.parameter.device))
    layer.format.validate()
    assert torch.equal(layer.mask().cpu(), changed)
    layer = layer.to(CPU)
    assert cases.same([layer, before])
    torch.testing.assert_close(layer(x), before(x))


@on_devices
@formats
@kinds
def test_another_stream(kind: str, format: str, device: torch.device) -> None:
    """Kernels run on the current stream, not on the default one."""
    dense, keep, layer, x = made(kind, format)
    layer = layer.to(device)
    stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def call(module: nn.Module, x: Tensor) -> Tensor:
        if device.type != "cuda" or x.device.type != "cuda":
            return module(x)
        # The input arrives late, and on that stream alone.
        with cases.on_stream(device, stream):
            torch.cuda._sleep(20_000_000)
            y = module(x * 1)
        torch.cuda.current_stream(device).wait_stream(stream)
        return y

    cases.compare(layer, dense, keep, x, device, call)


@pytest.mark.parametrize(
    "device", [CPU, pytest.param(torch.device("cuda", 1), marks=pytest.mark.gpu)], ids=str
)
@formats
@kinds
def test_second_device(kind: str, format: str, device: torch.device) -> None:
    """Not the current device."""
    if device.type == "cuda" and torch.cuda.device_count() < 2:
        pytest.skip("one CUDA device")
    dense, keep, layer, x = made(kind, format)
    cases.compare(layer.to(device), dense, keep, x, device)


@pytest.mark.gpu
@formats
def test_mixed_devices_are_one_sentence(format: str) -> None:
    _, _, layer, x = made("linear", format)
    with pytest.raises((ValueError, RuntimeError), match="Expected"):
        layer.to(cases.CUDA)(x)


@on_devices
@formats
def test_saved_there_and_loaded_here(format: str, device: torch.device, tmp_path: Path) -> None:
    """By ``sk.save`` and ``sk.load``, and by torch's own state_dict."""
    dense, keep, layer, x = made("linear", format)
    model = nn.Sequential(layer).to(device)
    sk.save(model, tmp_path / "model.safetensors")
    fresh = nn.Sequential(nn.Linear(80, 48))
    sk.load(fresh, tmp_path / "model.safetensors")
    torch.save(model.state_dict(), tmp_path / "model.pt")
    twin = nn.Sequential(cases.sparse(dense, keep.flip(0), format))
    twin.load_state_dict(torch.load(tmp_path / "model.pt", map_location="cpu"))
    assert cases.same([model, fresh, twin])
    for each in (fresh, twin):
        assert each[0].format.parameter.device == CPU
        torch.testing.assert_close(each(x), layer.to(CPU)(x))
    # And from here to there, into a model that is there already.
    back = nn.Sequential(nn.Linear(80, 48)).to(device)
    sk.load(back, tmp_path / "model.safetensors")
    assert back[0].format.parameter.device == device
    assert cases.same([model, back])


@on_devices
@pytest.mark.parametrize("format", ["csr", "bsr", "masked"])
def test_tune(format: str, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Measures on the device, and what it picks computes the same."""
    monkeypatch.setattr(measure, "SECONDS", 0.0)
    dense, keep, layer, x = made("linear", format)
    model = nn.Sequential(layer).to(device)
    plan = sk.tune(model, x.to(device), cache=False)
    assert plan["0"].variant in layer.format.variants
    assert plan["0"].forward_backward_ms
    cases.compare(model[0], dense, keep, x, device)
    assert "0" in str(sk.explain(model))


def vit() -> nn.Module:
    """Two blocks of width 64."""
    model = ViT(patch=4, features=64, heads=2, depth=2).build((3, 8, 8), 10)
    sk.sparsify(model, 0.25, pattern=Block(cases.SIDE, cases.SIDE), format="bsr", exclude=["patch"])
    return model


def convolutions() -> nn.Module:
    """Convolutions with norms between them, and an output layer."""
    model = nn.Sequential(
        nn.Conv2d(16, 32, 3, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 16, 10),
    )
    sk.sparsify(model, 0.25, format="csr")
    return model


@on_devices
@pytest.mark.parametrize(
    ("make", "shape"), [(vit, (3, 8, 8)), (convolutions, (16, 8, 8))], ids=["vit", "convolutions"]
)
def test_whole_network(
    make: Callable[[], nn.Module], shape: tuple[int, ...], device: torch.device
) -> None:
    """Loss and gradients of a network on the device are those on the CPU, where kernels differ."""
    model = make()
    twin = copy.deepcopy(model).to(device)
    x, y = torch.randn(4, *shape), torch.randint(10, (4,))
    losses = []
    for each, place in ((model, CPU), (twin, device)):
        loss = nn.functional.cross_entropy(each(x.to(place)), y.to(place))
        loss.backward()
        losses.append(loss.detach().cpu())
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-4, atol=1e-5)
    for (name, a), b in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(
            a.grad, b.grad.cpu(), rtol=1e-3, atol=1e-4, msg=lambda text, n=name: f"{n}: {text}"
        )
