"""``run``: a recipe from its data to its report."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sparsekern.data import Dataset
from sparsekern.train.callbacks import Callback
from sparsekern.train.checkpoint import Checkpoints
from sparsekern.train.files import remove_leftovers
from sparsekern.train.loop import train
from sparsekern.train.metrics import MetricsLog
from sparsekern.train.network import Bytes, Network, build_network
from sparsekern.train.recipe import Recipe
from sparsekern.train.recipe_file import load_recipe, save_recipe
from sparsekern.train.report import draw_report
from sparsekern.train.run_folder import (
    CHECKPOINTS,
    METRICS,
    RECIPE,
    REPORT,
    choose_folder,
    lock,
)
from sparsekern.train.small_dense import find_width
from sparsekern.train.summary import network_summary, run_summary, write_summary
from sparsekern.train.timing import StepTime, one_batch, stages, time_networks

TIMING_SECONDS = 5.0  # for the step times of the report
WIDTH_SECONDS = 0.8  # for each width that is tried


def run(
    recipe: Recipe,
    runs: Path = Path("runs"),
    *,
    name: str | None = None,
    fresh: bool = False,
    callback: Callback | None = None,
) -> Path:
    """Trains the networks of a recipe, measures them and writes a report.

    The same seeds train a dense network, the sparse one, and a smaller dense one whose step takes
    the time of the sparse one's. An interrupted run goes on where its newest checkpoint stands.

    Args:
        recipe: what to do.
        runs: folder of all runs.
        name: of this run's folder in ``runs``; the recipe's by default.
        fresh: start over, deleting the folder of that name.
        callback: is told what happens.

    Returns:
        The run's folder: ``summary.json``, ``metrics.jsonl``, ``report.png``, ``recipe.yaml`` and
        ``checkpoints/<network>-seed<seed>/``.

    Raises:
        ValueError: the recipe does not fit its data or model; the folder holds something else.
        RuntimeError: another process trains in the folder; the loss is no longer finite.
    """
    callback = callback or Callback()
    recipe = recipe.on_this_machine()
    dataset = recipe.data.load()
    build_network(recipe, dataset, "sparse", recipe.seed)  # what cannot work fails before any file
    folder = choose_folder(recipe, runs, name, fresh)
    with lock(folder):
        if (folder / RECIPE).exists():
            recipe = load_recipe(folder / RECIPE)  # with the width that may have been found
            callback.said(f"Going on with the unfinished run in {folder}.")
        remove_leftovers(folder)
        save_recipe(recipe, folder / RECIPE)
        Training(recipe, dataset, folder, callback).run()
    return folder


class Training:
    """One run in its folder."""

    def __init__(self, recipe: Recipe, dataset: Dataset, folder: Path, callback: Callback) -> None:
        self.recipe, self.dataset = recipe, dataset
        self.folder, self.callback = folder, callback
        self.log = MetricsLog(folder / METRICS)
        self.networks: dict[str, Network] = {}  # the trained ones of the first seed
        self.sizes: dict[str, Bytes] = {}  # of these, before measuring changes them
        self.seconds: dict[str, list[float]] = {}

    def run(self) -> None:
        """Trains, measures and reports; what is done already is taken from the folder."""
        baselines = self.recipe.baselines
        for seed in self._seeds():
            if baselines.dense:
                self._train("dense", seed)
            self._train("sparse", seed)
        if baselines.small_dense:
            width = self._small_dense_width()
            for seed in self._seeds():
                self._train("small_dense", seed, width)
        self._report()

    def _seeds(self) -> Iterator[int]:
        yield from range(self.recipe.seed, self.recipe.seed + self.recipe.seeds)

    def _train(self, name: str, seed: int, width: float = 1.0) -> None:
        network = build_network(self.recipe, self.dataset, name, seed, width)
        folder = self.folder / CHECKPOINTS / f"{name}-seed{seed}"
        progress = train(
            network,
            self.dataset,
            self.recipe,
            log=self.log,
            checkpoints=Checkpoints(folder, self.recipe.digest),
            callback=self.callback,
        )
        self.networks.setdefault(name, network)
        self.sizes.setdefault(name, network.nbytes)
        self.seconds.setdefault(name, []).append(progress.seconds)

    def _small_dense_width(self) -> float:
        """The recipe's own, or the one that is found now and written into the resolved recipe."""
        width = self.recipe.baselines.small_dense_width
        if width is None:
            self.callback.measuring("the dense width with the sparse network's step time")
            sparse = stages(self.recipe, self.dataset, self.networks["sparse"])
            width = find_width(self.recipe, self.dataset, sparse, WIDTH_SECONDS)
            self.recipe = self.recipe.with_small_dense_width(width)
            save_recipe(self.recipe, self.folder / RECIPE)
        return width

    def _report(self) -> None:
        self.callback.measuring("the step times")
        measured = {
            name: stages(self.recipe, self.dataset, network)
            for name, network in self.networks.items()
        }
        times = time_networks(measured, one_batch(self.recipe, self.dataset), TIMING_SECONDS)
        peak = max(stage.network.nbytes.total for stage in measured["sparse"])
        networks = {name: self._summary_of(name, time) for name, time in times.items()}
        summary = run_summary(self.recipe, networks, peak)
        draw_report(summary, self.log.rows(), self.folder / REPORT)
        write_summary(summary, self.folder)

    def _summary_of(self, name: str, time: StepTime) -> dict[str, Any]:
        ends = [
            row
            for row in self.log.rows()
            if row["network"] == name and row["epoch"] == self.recipe.epochs
        ]
        return network_summary(
            ends, self.seconds[name], time, self.sizes[name], self.networks[name].width
        )
