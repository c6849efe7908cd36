"""What the tests of the masked optimisers share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sparsekern.optim import MaskedAdamW, MaskedSGD

SHAPES = ((33, 41), (5, 3, 3, 3), (70,), (20_000,), (1,))  # the last two have no mask
MASKED = 3

Maker = Callable[..., Optimizer]

# name -> ours, torch's, options of both
CONFIGS: dict[str, tuple[Maker, Maker, dict[str, Any]]] = {
    "sgd": (MaskedSGD, torch.optim.SGD, {"lr": 0.1}),
    "momentum": (MaskedSGD, torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}),
    "dampening": (MaskedSGD, torch.optim.SGD, {"lr": 0.1, "momentum": 0.8, "dampening": 0.3}),
    "nesterov": (
        *(MaskedSGD, torch.optim.SGD),
        {"lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01, "maximize": True},
    ),
    "adamw": (MaskedAdamW, torch.optim.AdamW, {}),
    "adamw_options": (
        *(MaskedAdamW, torch.optim.AdamW),
        {"lr": 0.03, "betas": (0.8, 0.95), "eps": 1e-4, "weight_decay": 0.3, "maximize": True},
    ),
    "adamw_tensor_lr": (
        MaskedAdamW,
        torch.optim.AdamW,
        {"lr": torch.tensor(0.02, dtype=torch.float64)},
    ),
    "adam": (
        lambda p, **o: MaskedAdamW(p, decoupled_weight_decay=False, **o),
        torch.optim.Adam,
        {"lr": 0.02, "weight_decay": 0.2},
    ),
}
# Those with state, for saving and changes of topology.
STATEFUL = {name: CONFIGS[name] for name in ("momentum", "adamw_options")}


def weights(dtype: torch.dtype = torch.float32) -> tuple[list[nn.Parameter], dict[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(5)
    params = [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in SHAPES]
    masks = {p: torch.rand(p.shape, generator=generator) < 0.3 for p in params[:MASKED]}
    return params, masks


def gradients(steps: int, start: int = 0) -> Iterator[list[Tensor]]:
    for step in range(start, start + steps):
        generator = torch.Generator().manual_seed(1000 + step)
        yield [torch.randn(shape, generator=generator) for shape in SHAPES]


def give(params: list[nn.Parameter], grads: list[Tensor]) -> None:
    for parameter, grad in zip(params, grads, strict=True):
        parameter.grad = grad.to(parameter.dtype).clone()


def bits_of(value: Tensor) -> Tensor:
    return value.detach().contiguous().flatten().view(torch.uint8)


def kept_of(value: Tensor, mask: Tensor | None) -> Tensor:
    return value if mask is None else value[mask]


def kept_vectors(params: list[nn.Parameter], masks: dict[Tensor, Tensor]) -> list[nn.Parameter]:
    """The kept weights alone, for torch's optimiser."""
    return [nn.Parameter(kept_of(p.detach(), masks.get(p)).clone()) for p in params]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(24, 40), nn.ReLU(), nn.Linear(40, 32), nn.LayerNorm(32), nn.Linear(32, 4)
    )


def backward(model: nn.Module, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(16, 24, generator=generator)
    model(x).square().mean().backward()
