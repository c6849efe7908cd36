"""Suite `train`: the whole training step, from the main job of the README over three seeds.

The job itself trains, measures and compares (:mod:`sparsekern.train`); this suite turns its summary
into result rows, one a network.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from rich.console import Console

from bench.record import Recorder
from sparsekern.train.recipe_file import load_recipe
from sparsekern.train.report import report_table
from sparsekern.train.run import run as train
from sparsekern.train.summary import read_summary

RECIPE = "digits-rigl"
SEEDS = 3


def run(recorder: Recorder, console: Console, budget_s: float) -> None:
    """Runs the job; it takes what it takes, about a minute."""
    with tempfile.TemporaryDirectory() as folder:
        summary = read_summary(train(load_recipe(RECIPE, [f"seeds={SEEDS}"]), Path(folder)))
    for name in ("dense", "sparse", "small_dense"):
        recorder.write(
            suite="train", recipe=RECIPE, network=name, seeds=summary["seeds"], **summary[name]
        )
    console.print(report_table(summary))
