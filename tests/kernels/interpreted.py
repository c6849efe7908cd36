"""The contract suite under Triton's interpreter, one process a family, beside everything else.

The processes begin when tests have been collected, one after the other on a core of their own: the
interpreter takes minutes, and this process uses one core.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterable
from concurrent.futures import Future
from pathlib import Path

CONTRACT = Path(__file__).parent.parent / "ops" / "test_contract.py"
TESTS = "matches_the_oracle"  # run twice, one thread gives the same bits

Result = tuple[int, str]  # exit code, the end of what it printed


class Interpreted:
    """Runs that go on in the background."""

    def __init__(self) -> None:
        self._results: dict[str, Future[Result]] = {}
        self._stopped = False
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()

    def start(self, families: Iterable[str]) -> None:
        """Begins with the first of these; those that were asked for before are left out."""
        new = [family for family in families if family not in self._results]
        self._results.update({family: Future() for family in new})
        if new:
            threading.Thread(target=self._run, args=(new,), daemon=True).start()

    def result(self, family: str) -> Result:
        """Waits for a family, which begins now if it has not yet."""
        self.start([family])
        return self._results[family].result()

    def stop(self) -> None:
        """Ends what still runs."""
        with self._lock:
            self._stopped = True
            if self._process is not None:
                self._process.kill()

    def _run(self, families: list[str]) -> None:
        for family in families:
            self._results[family].set_result(self._contract(family))

    def _contract(self, family: str) -> Result:
        environment = {
            **os.environ,
            "TRITON_INTERPRET": "1",
            "SPARSEKERN_NATIVE": "0",
            "SPARSEKERN_TEST_FAMILY": f"{family}_",
        }
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
        command += [str(CONTRACT), "-k", TESTS]
        with self._lock:
            if self._stopped:
                return -1, "stopped"
            self._process = subprocess.Popen(
                command,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        output, _ = self._process.communicate()
        return self._process.returncode, output[-3000:]


INTERPRETED = Interpreted()
