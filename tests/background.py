"""Tests that are processes of their own, run beside all the others.

``@pytest.mark.background(command=f)``, where ``f`` takes the test's parameters and returns a
:class:`Command` or None: once it is known which tests are wanted, the processes of those that are
marked begin, one after the other on a core of their own, for pytest uses one.
"""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Mapping
from concurrent.futures import Future
from typing import NamedTuple


class Command(NamedTuple):
    """A process: what is run, and what it sees besides this one's environment."""

    arguments: list[str]
    environment: dict[str, str]


Result = tuple[int, str]  # exit code, the end of what it printed


class Background:
    """Processes that go on in the background."""

    def __init__(self) -> None:
        self._results: dict[str, Future[Result]] = {}
        self._stopped = False
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()

    def start(self, commands: Mapping[str, Command]) -> None:
        """Begins with the first of these, by name of its test."""
        self._results.update({name: Future() for name in commands})
        threading.Thread(target=self._run, args=(dict(commands),), daemon=True).start()

    def result(self, name: str) -> Result:
        """Waits for the process of a test."""
        return self._results[name].result()

    def stop(self) -> None:
        """Ends what still runs."""
        with self._lock:
            self._stopped = True
            if self._process is not None:
                self._process.kill()

    def _run(self, commands: dict[str, Command]) -> None:
        for name, command in commands.items():
            self._results[name].set_result(self._one(command))

    def _one(self, command: Command) -> Result:
        with self._lock:
            if self._stopped:
                return -1, "stopped"
            self._process = subprocess.Popen(
                command.arguments,
                env={**os.environ, **command.environment},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        output, _ = self._process.communicate()
        return self._process.returncode, output[-3000:]


BACKGROUND = Background()
