"""Interleaved timing: every contender runs once per round, so a slow spell hits all of them."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

WARM_UP_ROUNDS = 3
MIN_ROUNDS = 7
MAX_ROUNDS = 61


@dataclass(frozen=True)
class Times:
    """Seconds of one contender over all rounds."""

    p20: float
    p50: float
    p80: float
    rounds: int

    def row(self) -> dict[str, float]:
        """What a result row says of them."""
        quantiles = {"p20_ms": self.p20, "p50_ms": self.p50, "p80_ms": self.p80}
        rounded = {name: round(seconds * 1e3, 5) for name, seconds in quantiles.items()}
        return {**rounded, "rounds": self.rounds}


def wall_seconds(run: Callable[[], Any]) -> float:
    """How long one call takes by the host's clock; for the CPU, whose work is done on return."""
    before = time.perf_counter()
    run()
    return time.perf_counter() - before


def interleave(
    contenders: dict[str, Callable[[], None]],
    budget_s: float,
    seconds_of: Callable[[Callable[[], Any]], float] = wall_seconds,
) -> dict[str, Times]:
    """Medians of all contenders, from as many rounds as the budget allows (at least 7).

    ``seconds_of`` takes one call's time: the host's clock, or events of a GPU.
    """
    for _ in range(WARM_UP_ROUNDS):
        for run in contenders.values():
            run()
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    gc.collect()
    gc.disable()
    try:
        start = time.perf_counter()
        while _more_rounds(
            len(next(iter(seconds.values()))), time.perf_counter() - start, budget_s
        ):
            for name, run in contenders.items():
                seconds[name].append(seconds_of(run))
    finally:
        gc.enable()
    return {name: _times(samples) for name, samples in seconds.items()}


def _more_rounds(done: int, elapsed: float, budget_s: float) -> bool:
    return done < MIN_ROUNDS or (elapsed < budget_s and done < MAX_ROUNDS)


def _times(samples: list[float]) -> Times:
    ordered = sorted(samples)
    pick = [ordered[min(int(q * len(ordered)), len(ordered) - 1)] for q in (0.2, 0.5, 0.8)]
    return Times(*pick, rounds=len(ordered))


def training_step(
    loss: Callable[[], Tensor],
    optimizer: torch.optim.Optimizer,
    update: Callable[[], Any] | None = None,
) -> Callable[[], None]:
    """Forward, loss, backward, ``update`` (default: the optimiser's step) and zero_grad."""
    chosen = optimizer.step if update is None else update

    def step() -> None:
        loss().backward()
        chosen()
        optimizer.zero_grad()

    return step


def forward_call(layer: nn.Module, x: Tensor) -> Callable[[], None]:
    """The layer without gradients."""

    def run() -> None:
        with torch.no_grad():
            layer(x)

    return run


def forward_backward_call(layer: nn.Module, x: Tensor, grad: Tensor) -> Callable[[], None]:
    """The layer and the gradients of its input and parameters, which are dropped afterwards."""
    x = x.detach().requires_grad_()
    parameters = list(layer.parameters())

    def run() -> None:
        layer(x).backward(grad)
        x.grad = None
        for parameter in parameters:
            parameter.grad = None

    return run
