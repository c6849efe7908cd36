"""Which folder a run writes to, and that only one process does."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sparsekern.train.recipe import Recipe, check_folder_name
from sparsekern.train.recipe_file import load_recipe

RECIPE, SUMMARY, METRICS, REPORT = "recipe.yaml", "summary.json", "metrics.jsonl", "report.png"
CHECKPOINTS = "checkpoints"
LOCK = ".lock"


def choose_folder(recipe: Recipe, runs: Path, name: str | None, fresh: bool) -> Path:
    """The folder for a run of ``recipe``, which may hold the beginning of that very run.

    Taken in turn: ``runs/<name>``, ``runs/<name>-2``, ...; the first that is free, or holds an
    unfinished run of the same recipe. Finished runs are passed over.

    Args:
        recipe: what will run.
        runs: where runs lie.
        name: of the folder; the recipe's by default.
        fresh: delete the folder ``runs/<name>``, if it holds a run, and take it.

    Raises:
        ValueError: an unfinished run of another recipe, or something else than a run, is there.
    """
    name = recipe.name if name is None else name
    check_folder_name(name, "--name")
    first = runs / name
    if fresh and first.exists():
        if not _is_empty(first) and not (first / RECIPE).exists():
            raise ValueError(_not_a_run(first))
        with lock(first):
            shutil.rmtree(first)
    number = 1
    while True:
        folder = first if number == 1 else runs / f"{name}-{number}"
        if not folder.exists() or _is_empty(folder):
            return folder
        if not (folder / RECIPE).exists():
            raise ValueError(_not_a_run(folder))
        if not is_finished(folder):
            _check_same(recipe, folder)
            return folder
        number += 1


def is_finished(folder: Path) -> bool:
    """Whether a run has written all it writes."""
    return (folder / SUMMARY).exists()


def _is_empty(folder: Path) -> bool:
    return folder.is_dir() and all(entry.name == LOCK for entry in folder.iterdir())


def _not_a_run(folder: Path) -> str:
    return (
        f"Expected {folder} to be the folder of a run. Got something without {RECIPE}: "
        "choose another one with --name or --runs."
    )


def _check_same(recipe: Recipe, folder: Path) -> None:
    """Raises ValueError unless the unfinished run in ``folder`` is of this recipe."""
    try:
        started = load_recipe(folder / RECIPE)
    except ValueError:  # of another version of this package
        started = None
    if started is None or not started.is_continued_by(recipe):
        raise ValueError(
            f"Expected the unfinished run in {folder} to have the same recipe. Got another: give "
            "this run another --name, or start over with --fresh, which deletes that folder."
        )


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Holds a run's folder for this process; the system lets it go when the process ends.

    Raises:
        RuntimeError: another process is training there.
    """
    try:
        import fcntl
    except ImportError:  # Windows: two runs in one folder are not noticed there
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RuntimeError(
                f"Expected {folder} to be free. Got another process that is training there."
            ) from None
        yield
    finally:
        os.close(descriptor)
