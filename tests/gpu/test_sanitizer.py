"""compute-sanitizer over a small set of calls: accesses out of bounds, races in shared memory."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.gpu import sanitized

ROOT = Path(__file__).resolve().parents[2]
FOUND = 99  # the exit status that the tool is asked for
SECONDS = 240


def sanitizer() -> str | None:
    """The tool, on PATH or where CUDA's installer puts it."""
    homes = [os.environ.get("CUDA_HOME", "/usr/local/cuda"), "/usr/local/cuda"]
    places = [os.environ.get("PATH", ""), *(f"{home}/bin" for home in homes)]
    places += [f"{home}/compute-sanitizer" for home in homes]
    return shutil.which("compute-sanitizer", path=os.pathsep.join(places))


def watched(tool: str, check: str, command: list[str]) -> subprocess.CompletedProcess[str]:
    """Runs python under the tool; allocations are not cached, so that each has its own bounds."""
    # Triton's compiler is a process that nobody needs to watch.
    options = ["--tool", check, "--error-exitcode", str(FOUND)]
    options += ["--target-processes", "application-only"]
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    return subprocess.run(
        [tool, *options, sys.executable, *command],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.parametrize("check", ["memcheck", "racecheck"])
def test_nothing_is_found(check: str) -> None:
    tool = sanitizer()
    if tool is None:
        pytest.skip("compute-sanitizer is not installed")
    trial = watched(tool, check, ["-c", "import torch; torch.ones(1).cuda().sum().item()"])
    if trial.returncode != 0:
        pytest.skip(f"compute-sanitizer does not run here: {trial.stdout.strip()[-200:]}")
    try:
        result = watched(tool, check, ["-m", "tests.gpu.sanitized", "cuda"])
    except subprocess.TimeoutExpired as late:
        said = (late.stdout or b"").decode(errors="replace")  # bytes, even with text=True
        found = re.search(r"========= +(Invalid|Error:|Warning: Race|Race|Misaligned)", said)
        assert found is None, said[-3000:]
        pytest.skip(f"unconfirmed: {check} was stopped after {SECONDS} s, nothing reported by then")
    assert result.returncode == 0, (result.stdout + result.stderr)[-3000:]


def test_the_calls_run() -> None:
    """The same calls without the tool, on the CPU."""
    assert sanitized.main("cpu") > 100
