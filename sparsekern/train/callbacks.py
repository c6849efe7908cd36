"""What a run tells its caller while it goes on."""

from __future__ import annotations

from sparsekern.train.metrics import Row


class Callback:
    """Called by :func:`sparsekern.train.run.run` and the loop. Override what you need."""

    def said(self, line: str) -> None:
        """The run has something to say: where it goes on, what it skips."""

    def started(self, network: str, seed: int, epochs: int, done: int) -> None:
        """A network begins to train, or goes on after ``done`` epochs."""

    def epoch_ended(self, row: Row) -> None:
        """An epoch ended with these metrics."""

    def ended(self, network: str, seed: int) -> None:
        """A network has been trained."""

    def measuring(self, what: str) -> None:
        """The run measures step times."""
