"""``metrics.jsonl``: one row for each network, seed and epoch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypedDict, get_type_hints

from sparsekern.train.files import sync, write_atomically


class Row(TypedDict):
    """Metrics of one epoch. No clock enters: a resumed run writes the same rows."""

    network: str
    seed: int
    epoch: int  # from 1
    step: int  # optimiser steps so far
    learning_rate: float  # of the last step
    train_loss: float  # mean over the batches of the epoch
    test_loss: float
    test_accuracy: float  # fraction in [0, 1]
    density: float


class MetricsLog:
    """The rows of a run, in a file that is only ever appended to."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, row: Row) -> None:
        """Adds a row."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def sync(self) -> None:
        """Waits until all rows are on the disk."""
        if self.path.exists():
            sync(self.path)

    def rows(self) -> list[Row]:
        """All rows. A last line that was cut off by a kill is left out.

        Raises:
            ValueError: the file is damaged.
        """
        if not self.path.exists():
            return []
        try:
            lines = self.path.read_text("utf-8").split("\n")[:-1]
        except UnicodeDecodeError:
            raise ValueError(f"Expected {self.path} to be text. Got other bytes.") from None
        return [self._row(number, line) for number, line in enumerate(lines, 1)]

    def _row(self, number: int, line: str) -> Row:
        """The row in one line."""
        try:
            row: Row = json.loads(line)
        except (ValueError, RecursionError):
            raise ValueError(
                f"Expected {self.path} to hold one JSON object a line. Got {line[:80]!r}."
            ) from None
        for key, kind in get_type_hints(Row).items():
            value = row.get(key) if isinstance(row, dict) else None
            kinds = (float, int) if kind is float else (kind,)
            if isinstance(value, bool) or not isinstance(value, kinds):
                raise ValueError(
                    f"Expected line {number} of {self.path} to have {key} of type {kind.__name__}. "
                    f"Got {value!r}: the file is damaged."
                )
        return row

    def check_epochs(self, network: str, seed: int, epochs: int) -> None:
        """Raises ValueError unless the first ``epochs`` epochs of a network have a row each."""
        found = [
            row["epoch"] for row in self.rows() if (row["network"], row["seed"]) == (network, seed)
        ]
        if found != list(range(1, epochs + 1)):
            raise ValueError(
                f"Expected {self.path} to have a row for each of {epochs} epochs of {network}, "
                f"seed {seed}, which a checkpoint has. Got {len(found)}: the file is damaged; "
                "start over with --fresh."
            )

    def drop_after(self, network: str, seed: int, epoch: int) -> None:
        """Forgets what a network did after ``epoch``: it is trained again from there."""
        if not self.path.exists():
            return

        def stays(row: Row) -> bool:
            return (row["network"], row["seed"]) != (network, seed) or row["epoch"] <= epoch

        kept = [json.dumps(row) + "\n" for row in self.rows() if stays(row)]
        write_atomically(self.path, "".join(kept).encode())
