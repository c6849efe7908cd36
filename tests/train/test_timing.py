"""Step times: what is measured, on what, and how the parts add up. No time is asserted."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from sparsekern.data import Dataset
from sparsekern.train import small_dense, timing
from sparsekern.train.network import Network, build_network
from sparsekern.train.recipe import Recipe
from sparsekern.train.small_dense import find_width
from sparsekern.train.timing import (
    Stage,
    Stepper,
    StepTime,
    mean_time,
    one_batch,
    stages,
    time_networks,
    time_steps,
)


def _network(recipe: Recipe, name: str = "sparse") -> tuple[Dataset, Network]:
    dataset = recipe.data.load()
    return dataset, build_network(recipe, dataset, name, 0)


def test_step_is_the_sum_of_its_parts():
    assert StepTime(1.0, 2.0, 0.5, topology_ms=9.0).step_ms == 3.5


def test_mean_over_stages():
    times = [StepTime(1.0, 2.0, 3.0, 8.0), StepTime(3.0, 4.0, 5.0, 4.0)]
    assert mean_time(times) == StepTime(2.0, 3.0, 4.0, 6.0)


def test_update_has_its_share_of_the_topology_updates(tiny: Callable[..., Recipe]):
    recipe = tiny()
    dataset, network = _network(recipe)
    stepper = Stepper(Stage(network, update=9, share=0.1), one_batch(recipe, dataset))
    stepper.quiet, stepper.longer = [(1.0, 2.0, 3.0)], [50.0, 500.0, 5.0]
    assert stepper.result() == StepTime(1.0, 2.0, 8.0, 50.0)


def test_timing_leaves_the_weights_alone(tiny: Callable[..., Recipe]):
    recipe = tiny("static")
    dataset, network = _network(recipe)
    before = {key: value.clone() for key, value in network.model.state_dict().items()}
    time_steps([Stage(network)], one_batch(recipe, dataset), 0.0)
    for key, value in network.model.state_dict().items():
        assert torch.equal(value, before[key])


def test_networks_take_turns(tiny: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch):
    recipe = tiny()
    dataset, sparse = _network(recipe)
    dense = build_network(recipe, dataset, "dense", 0)
    order: list[str] = []
    step = Stepper.step

    def record(stepper: Stepper) -> tuple[float, float, float]:
        order.append(stepper.network.name)
        return step(stepper)

    monkeypatch.setattr(Stepper, "step", record)
    times = time_steps([Stage(dense), Stage(sparse, 9, 0.1)], one_batch(recipe, dataset), 0.0)
    steps = 1 + timing.STEPS_A_TURN
    turn = ["dense"] * steps + ["sparse"] * (steps + 2)  # one asks, one has the update
    assert order[2 * timing.WARM_UP :] == turn * timing.MINIMUM_ROUNDS
    assert len(times) == 2
    assert all(time.step_ms > 0 for time in times)


@pytest.mark.parametrize("method", ["rigl", "set"])
def test_each_turn_has_a_topology_update(
    tiny: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch, method: str
):
    recipe = tiny(method)
    dataset, network = _network(recipe)
    pruner = network.pruner
    assert pruner is not None
    updates: list[int] = []
    update = pruner.update_topology
    monkeypatch.setattr(
        pruner, "update_topology", lambda *args: (updates.append(pruner.steps), update(*args))
    )
    density = network.density
    time_steps(stages(recipe, dataset, network), one_batch(recipe, dataset), 0.0)
    middle = network.updates[len(network.updates) // 2]
    assert updates == [middle] * timing.MINIMUM_ROUNDS
    assert network.density == density


def test_constant_density_is_one_stage(tiny: Callable[..., Recipe]):
    for method in ("rigl", "set"):
        recipe = tiny(method)
        dataset, network = _network(recipe)
        updates = network.updates
        assert stages(recipe, dataset, network) == [
            Stage(network, updates[len(updates) // 2], len(updates) / 84)
        ]
    recipe = tiny("static")
    dataset, network = _network(recipe)
    assert stages(recipe, dataset, network) == [Stage(network)]


def test_stages_of_gmp_follow_its_ramp(tiny: Callable[..., Recipe]):
    recipe = tiny("gmp", "method.update_every=5")
    dataset, network = _network(recipe)
    updates = network.updates
    Stepper(Stage(network), one_batch(recipe, dataset)).updating_step(updates[-1])
    found = stages(recipe, dataset, network)
    densities = [each.network.density for each in found]
    assert len(found) == timing.STAGES
    assert densities == sorted(densities, reverse=True)
    assert densities[-1] == pytest.approx(0.2, abs=1e-4)
    assert densities[0] == 1.0
    assert [each.network.compacted for each in found] == [False] * 4 + [True] * 2
    # The share that is missing is that of the first part, which has no update in its first half.
    shares = [each.share for each in found]
    assert 84 / timing.STAGES * sum(shares) == pytest.approx(len(updates), abs=2)
    time_steps(found, one_batch(recipe, dataset), 0.0)
    assert [each.network.density for each in found] == densities


def test_a_run_shorter_than_the_stages(tiny: Callable[..., Recipe]):
    """Four steps: each is a part of the run."""
    recipe = tiny("gmp", "epochs=1", "batch_size=224", "method.update_every=1")
    dataset = recipe.data.load()
    network = build_network(recipe, dataset, "sparse", 0)
    assert network.pruner is not None
    assert network.pruner.total_steps == 4 < timing.STAGES
    Stepper(Stage(network), one_batch(recipe, dataset)).updating_step(network.updates[-1])
    found = stages(recipe, dataset, network)
    assert len(found) == 4
    assert sum(stage.share for stage in found) == len(network.updates)


def test_all_networks_are_timed(tiny: Callable[..., Recipe]):
    recipe = tiny()
    dataset, sparse = _network(recipe)
    dense = build_network(recipe, dataset, "dense", 0)
    times = time_networks(
        {"dense": [Stage(dense)], "sparse": stages(recipe, dataset, sparse)},
        one_batch(recipe, dataset),
        0.0,
    )
    assert set(times) == {"dense", "sparse"}
    assert times["dense"].topology_ms == 0.0


@pytest.mark.parametrize(("power", "target"), [(1.0, 0.2), (1.5, 0.5), (2.0, 0.3)])
def test_width_is_found(
    tiny: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch, power: float, target: float
):
    """Against a clock that says width ** power, and once something much else."""
    recipe = tiny("static")
    dataset, sparse = _network(recipe)
    calls = []

    def clock(measured: list[Stage], batch: object, seconds: float) -> list[StepTime]:
        calls.append(seconds)
        disturbed = 10.0 if len(calls) == 2 else 1.0
        networks = [stage.network for stage in measured]
        widths = [target if each.name == "sparse" else each.width for each in networks]

        times = [width**power for width in widths]
        return [StepTime(times[0] * disturbed, 0.0, 0.0), StepTime(times[1], 0.0, 0.0)]

    monkeypatch.setattr(small_dense, "time_steps", clock)
    assert find_width(recipe, dataset, [Stage(sparse)], 0.0) == pytest.approx(target, rel=0.05)


def test_width_stays_in_its_bounds(tiny: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch):
    recipe = tiny("static")
    dataset, sparse = _network(recipe)
    for factor, width in ((100.0, 1.0), (1e-6, round(small_dense.NARROWEST, 4))):
        monkeypatch.setattr(
            small_dense,
            "time_steps",
            lambda *args, f=factor: [StepTime(f, 0.0, 0.0), StepTime(1.0, 0.0, 0.0)],
        )
        assert find_width(recipe, dataset, [Stage(sparse)], 0.0) == width
