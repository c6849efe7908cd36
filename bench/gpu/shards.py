"""pytest in several processes that share the device: Triton compiles in all of them.

Needs no plugin: each process takes the tests whose group hashes to its number (tests/conftest.py),
where those of one op and dtype, which share machine code, are one group.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.record import ROOT

MOST = 8
REPORT_S = 10.0  # that pytest gets to report, once it is stopped
NO_TESTS = 5  # pytest's exit code


@dataclass(frozen=True)
class Outcome:
    """What the processes left.

    Attributes:
        reports: JUnit files, of those processes that wrote one.
        status: "green", "red" or "no test was selected".
        ended: whether all processes ended by themselves in time.
    """

    reports: list[Path]
    status: str
    ended: bool


def processes() -> int:
    """How many are worth while here."""
    return max(1, min(MOST, (os.cpu_count() or 1) // 2))


def run_pytest(
    arguments: Sequence[str],
    seconds: float,
    folder: Path,
    count: int,
    environment: Mapping[str, str] | None = None,
) -> Outcome:
    """Runs pytest on ``arguments`` in ``count`` processes for at most so many seconds.

    Args:
        arguments: of pytest.
        seconds: what is not done then is stopped, and killed where it does not stop.
        folder: receives a report of each process.
        count: of processes.
        environment: what they see besides this process's own.
    """
    deadline = time.monotonic() + seconds
    reports = [folder / f"report{i}.xml" for i in range(count)]
    running = []
    for i, report in enumerate(reports):
        command = [sys.executable, "-m", "pytest", "-q", f"--junitxml={report}", *arguments]
        command += ["-p", "no:cacheprovider"]
        shard = {"SPARSEKERN_TEST_SHARD": f"{i}/{count}"}
        seen = {**os.environ, **(environment or {}), **shard}
        # A group of its own: what it starts must not outlive it.
        running.append(subprocess.Popen(command, cwd=ROOT.parent, env=seen, start_new_session=True))
    ended = all([_ends(process, deadline) for process in running])
    if not ended:
        for process in running:
            process.send_signal(signal.SIGINT)  # pytest says what it has found so far
        grace = time.monotonic() + REPORT_S
        for process in running:
            if not _ends(process, grace):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    codes = {process.returncode for process in running}
    status = "green" if codes <= {0, NO_TESTS} else "red"
    if codes == {NO_TESTS}:
        status = "no test was selected"
    return Outcome([report for report in reports if report.exists()], status, ended)


def _ends(process: subprocess.Popen[bytes], deadline: float) -> bool:
    """Whether the process ends by then, on the monotonic clock."""
    try:
        process.wait(timeout=max(deadline - time.monotonic(), 0.0))
    except subprocess.TimeoutExpired:
        return False
    return True
