"""No step mixes devices: whole training steps on tensors that have a device but no numbers.

Fake tensors on "meta" stand for a GPU here: every op that gets tensors of two devices raises.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import sparsekern as sk
from sparsekern.formats import FORMATS
from sparsekern.models import MODELS
from sparsekern.nn import sparse_layers

PATTERNS = {
    "csr": sk.patterns.Unstructured(),
    "masked": sk.patterns.Unstructured(),
    "bsr": sk.patterns.Block(16, 16),
    "condensed": sk.patterns.FanIn(),
}
INPUTS = {"mlp": (8, 8), "resnet": (3, 32, 32), "vit": (3, 32, 32)}
OPTIONS: dict[str, dict[str, Any]] = {
    "mlp": {"hidden": (64, 64)},
    "resnet": {"depth": 20},
    "vit": {"patch": 8, "features": 64, "depth": 2, "heads": 2},
}
OPTIMIZERS = {
    "sgd": lambda model: torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
    "adamw": lambda model: torch.optim.AdamW(model.parameters()),
    "masked_sgd": lambda m: sk.optim.MaskedSGD(m.parameters(), lr=0.1, momentum=0.9, model=m),
    "masked_adamw": lambda model: sk.optim.MaskedAdamW(model.parameters(), model=model),
}


@pytest.fixture
def elsewhere() -> Iterator[torch.device]:
    with FakeTensorMode():
        yield torch.device("meta")


def move(model: nn.Module, device: torch.device) -> None:
    """As ``model.to(device)``, but for the numbers."""

    def empty(tensor: Tensor) -> Tensor:
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)

    model._apply(empty)


def sparse(name: str, format: str) -> nn.Module:
    model = MODELS[name](**OPTIONS[name]).build(INPUTS[name], 10)
    pattern = PATTERNS[format]
    sk.sparsify(model, density=0.3, format=format, pattern=pattern, distribution="uniform")
    assert {layer.format.name for layer in sparse_layers(model).values()} == {format}
    return model


def test_mixing_is_noticed(elsewhere: torch.device) -> None:
    with pytest.raises(Exception, match="same device"):
        _ = torch.zeros(3, device=elsewhere) + torch.zeros(3)


CASES = [("mlp", optimizer) for optimizer in OPTIMIZERS]
CASES += [("resnet", "masked_sgd"), ("vit", "masked_adamw")]


@pytest.mark.parametrize("format", list(FORMATS))
@pytest.mark.parametrize(("name", "optimizer"), CASES)
def test_a_training_step(name: str, format: str, optimizer: str) -> None:
    model = sparse(name, format)
    with FakeTensorMode():
        device = torch.device("meta")
        move(model, device)
        chosen = OPTIMIZERS[optimizer](model)
        for layer in sparse_layers(model).values():
            layer.format.arm_dense_grad()
        x = torch.randn(4, *INPUTS[name], device=device)
        y = torch.zeros(4, dtype=torch.int64, device=device)
        for _ in range(2):
            nn.functional.cross_entropy(model(x), y).backward()
            chosen.step()
            for layer in sparse_layers(model).values():
                gradient = layer.format.take_dense_grad()
                assert gradient is None or gradient.device == device
            chosen.zero_grad()
        with torch.no_grad():
            assert model.eval()(x).device == device
        held = [*model.parameters(), *model.buffers()]
        assert {tensor.device for tensor in held} == {device}
