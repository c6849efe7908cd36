"""Milliseconds of a training step, measured side by side.

The networks take turns in one process, so that whatever disturbs the machine disturbs them all.
Each turn begins with an untimed step, which brings the network's own data back into the caches, as
they are in training. The measured networks are changed: hand in ones that have served.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, median

from torch import Tensor

from sparsekern.data import Dataset
from sparsekern.train.device import find_device, wait_for
from sparsekern.train.loss import cross_entropy
from sparsekern.train.network import Network, build_network
from sparsekern.train.recipe import Recipe

WARM_UP = 3
STEPS_A_TURN = 3  # timed ones
MINIMUM_ROUNDS, MAXIMUM_ROUNDS = 5, 100
STAGES = 6  # of a run whose density changes


@dataclass(frozen=True)
class StepTime:
    """Milliseconds of one training step.

    Attributes:
        forward_ms: the model and the loss.
        backward_ms: all gradients.
        update_ms: the optimiser (or what the Pruner puts in its place) and ``zero_grad``, plus
            the share of the topology updates that falls on one step.
        topology_ms: what a step with a topology update takes longer than one without (0 if there
            are none): gradients of the dense weights, the new mask and index, moved state.
    """

    forward_ms: float
    backward_ms: float
    update_ms: float
    topology_ms: float = 0.0

    @property
    def step_ms(self) -> float:
        return self.forward_ms + self.backward_ms + self.update_ms


@dataclass(frozen=True)
class Stage:
    """A network as it is during a part of a run.

    Attributes:
        network: what is measured, and changed by that.
        update: a step whose topology update leaves the density as it is; None: there are none.
        share: fraction of the steps of that part which change the topology.
    """

    network: Network
    update: int | None = None
    share: float = 0.0


class Stepper:
    """Repeats the training step of one network on one batch and times its parts."""

    def __init__(self, stage: Stage, batch: tuple[Tensor, Tensor]) -> None:
        self.stage = stage
        network = self.network = stage.network
        self.x, self.y = batch
        self.wait = wait_for(network.device)
        self.quiet: list[tuple[float, float, float]] = []  # milliseconds of the three parts
        self.longer: list[float] = []  # what topology updates add to a step
        network.model.train()
        # NOTE: at learning rate 0 a step costs the same, and the weights stay what they are.
        for group in network.optimizer.param_groups:
            group["lr"] = 0.0

    def step(self) -> tuple[float, float, float]:
        """One training step; milliseconds of forward, backward and update."""
        begin = self._now()
        with self.network.autocast():
            loss = cross_entropy(self.network.model(self.x), self.y)
        forward = self._now()
        self.network.scaler.scale(loss).backward()
        backward = self._now()
        self.network.update()
        self.network.optimizer.zero_grad()
        end = self._now()
        return (forward - begin) * 1e3, (backward - forward) * 1e3, (end - backward) * 1e3

    def _now(self) -> float:
        self.wait()
        return time.perf_counter()

    def quiet_step(self) -> tuple[float, float, float]:
        """A step at which the topology does not change: one after the end of the run."""
        pruner = self.network.pruner
        if pruner is not None:
            pruner.steps = pruner.total_steps
        return self.step()

    def updating_step(self, update: int) -> float:
        """Milliseconds of a whole step with the topology update of step ``update``."""
        pruner = self.network.pruner
        assert pruner is not None
        pruner.steps = update - 1
        self.step()  # asks for the dense gradient where the method needs it
        return sum(self.step())

    def turn(self) -> None:
        """An untimed step, some timed ones, and one with a topology update."""
        self.quiet_step()
        own = [self.quiet_step() for _ in range(STEPS_A_TURN)]
        self.quiet += own
        if self.stage.update is not None:
            updating = self.updating_step(self.stage.update)
            self.longer.append(updating - fmean(sum(parts) for parts in own))

    def result(self) -> StepTime:
        """Medians over all turns, with the share of the topology updates."""
        forward, backward, update = (median(part) for part in zip(*self.quiet, strict=True))
        topology = max(0.0, median(self.longer)) if self.longer else 0.0
        return StepTime(forward, backward, update + self.stage.share * topology, topology)


def one_batch(recipe: Recipe, dataset: Dataset) -> tuple[Tensor, Tensor]:
    """The batch that all networks are timed on, on their device."""
    x, y = next(dataset.train_batches(recipe.batch_size, seed=recipe.seed, epoch=0))
    device = find_device(recipe.device)
    return x.to(device), y.to(device)


def time_steps(
    measured: Sequence[Stage], batch: tuple[Tensor, Tensor], seconds: float
) -> list[StepTime]:
    """Step times of networks that take turns.

    Args:
        measured: the networks; they are changed.
        batch: what they are trained on.
        seconds: to spend, within :data:`MINIMUM_ROUNDS` and :data:`MAXIMUM_ROUNDS` rounds.
    """
    steppers = [Stepper(stage, batch) for stage in measured]
    for stepper in steppers:
        for _ in range(WARM_UP):
            stepper.quiet_step()
    end = time.perf_counter() + seconds
    for rounds in range(MAXIMUM_ROUNDS):
        if rounds >= MINIMUM_ROUNDS and time.perf_counter() > end:
            break
        for stepper in steppers:
            stepper.turn()
    return [stepper.result() for stepper in steppers]


def stages(recipe: Recipe, dataset: Dataset, trained: Network) -> list[Stage]:
    """Networks whose mean step time is that of the whole run.

    The trained network alone where the density is the same from the first step to the last (time
    depends on the number of kept weights, not on which they are); else fresh networks with the
    densities in the middle of :data:`STAGES` equal parts of the run.
    """
    pruner, updates = trained.pruner, trained.updates
    if pruner is None or not updates:
        return [Stage(trained)]
    steps = pruner.total_steps
    fresh = build_network(recipe, dataset, trained.name, trained.seed, trained.width)
    if fresh.density == trained.density:
        return [Stage(trained, updates[len(updates) // 2], len(updates) / steps)]
    ends = sorted({round(i / STAGES * steps) for i in range(STAGES + 1)})  # a short run has fewer
    return [_stage(recipe, dataset, trained, part) for part in pairwise(ends)]


def _stage(recipe: Recipe, dataset: Dataset, trained: Network, part: tuple[int, int]) -> Stage:
    """A fresh network with the density that the run has in the middle of a part of its steps."""
    network = build_network(recipe, dataset, trained.name, trained.seed, trained.width)
    begin, end = part
    past = [update for update in network.updates if update < (begin + end) / 2]
    batch = one_batch(recipe, dataset)
    if recipe.tune and not past:
        network.tune(batch[0])
    if not past:
        return Stage(network)
    stepper = Stepper(Stage(network), batch)
    stepper.updating_step(past[-1])
    share = sum(begin <= update < end for update in network.updates) / (end - begin)
    final = len(past) == len(network.updates)
    if recipe.compact and final:
        network.compact()
    if recipe.tune and final:
        network.tune(batch[0])
    return Stage(network, past[-1], share)


def mean_time(times: Sequence[StepTime]) -> StepTime:
    """The mean over the stages of a run."""
    return StepTime(
        forward_ms=fmean(time.forward_ms for time in times),
        backward_ms=fmean(time.backward_ms for time in times),
        update_ms=fmean(time.update_ms for time in times),
        topology_ms=fmean(time.topology_ms for time in times),
    )


def time_networks(
    networks: dict[str, list[Stage]], batch: tuple[Tensor, Tensor], seconds: float
) -> dict[str, StepTime]:
    """Step times of the networks of a run, each given by its :func:`stages`."""
    flat = [stage for each in networks.values() for stage in each]
    times = iter(time_steps(flat, batch, seconds))
    return {name: mean_time([next(times) for _ in each]) for name, each in networks.items()}
