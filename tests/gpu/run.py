"""`python -m tests.gpu.run`: what confirms the GPU code, within a budget of seconds.

In order: every op on the device against its oracle; tests marked `gpu`; ops with kernels in CUDA
C++ once more in Triton; the rest of the ops' contract on the device; the slow ones of the marked
tests (sanitizers, tensors of more than 2^31 elements); the contract on this machine's CPU, which
may have an instruction set that no other machine here has. What did not fit is named, and every
phase is a row of the results.
"""

from __future__ import annotations

import itertools
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from bench.gpu.gate import CONTRACT
from bench.gpu.shards import REPORT_S, processes, run_pytest
from bench.gpu.worker import name_of, versions
from bench.record import ROOT, Recorder

LEAST_S = 20.0  # a phase that has less is not begun


@dataclass(frozen=True)
class Phase:
    """A selection of tests, whether processes may share the device, and what is switched off."""

    name: str
    arguments: tuple[str, ...]
    parallel: bool = True
    environment: tuple[tuple[str, str], ...] = ()


TESTS = ROOT.parent / "tests"


def marked() -> tuple[str, ...]:
    """The files that can hold tests marked `gpu`: collecting all of them takes long."""
    return tuple(str(p) for p in sorted(TESTS.rglob("test_*.py")) if "gpu" in p.read_text("utf-8"))


# What has CUDA C++ kernels, behind which Triton's would never run.
TWICE = " or ".join(
    f"{p.name}_" for p in sorted((ROOT.parent / "csrc/cuda").iterdir()) if p.is_dir()
)
DEVICE = (str(CONTRACT), "-k")
PHASES = (
    Phase("oracle on the device", (*DEVICE, "cuda- and matches_the_oracle")),
    Phase("gpu", (*marked(), "-m", "gpu and not slow")),
    Phase(
        "oracle on the device, Triton in place of CUDA C++",
        (*DEVICE, f"cuda- and matches_the_oracle and ({TWICE})"),
        environment=(("SPARSEKERN_CUDA", "0"),),
    ),
    Phase("rest of the contract on the device", (*DEVICE, "cuda- and not matches_the_oracle")),
    Phase("gpu, slow", (*marked(), "-m", "gpu and slow"), parallel=False),
    Phase("contract on the CPU", (*DEVICE, "not cuda-", "-m", "not slow")),
)


def run_phase(phase: Phase, seconds: float) -> dict[str, Any]:
    """Runs pytest for at most so long; its counts, and what became of it."""
    began = time.time()
    count = processes() if phase.parallel else 1
    with tempfile.TemporaryDirectory() as folder:
        # Inductor would start as many compilers as there are cores in each of the processes.
        environment = {"TORCHINDUCTOR_COMPILE_THREADS": "1", **dict(phase.environment)}
        outcome = run_pytest(phase.arguments, seconds - REPORT_S, Path(folder), count, environment)
        counts = counted(outcome.reports)
    status = outcome.status
    if status == "green" and counts["passed"] == 0:
        status = "red, nothing passed"
    if not outcome.ended:
        status = "red, not finished" if counts["failed"] else "not finished"
    return {"status": status, "seconds": round(time.time() - began, 1), **counts}


def counted(reports: Iterable[Path]) -> dict[str, int]:
    """How many tests passed, failed and were skipped."""
    counts = {"passed": 0, "failed": 0, "skipped": 0}
    cases = (ElementTree.parse(report).iter("testcase") for report in reports)
    for case in itertools.chain.from_iterable(cases):
        if case.get("name") is None:  # what pytest leaves of a test that was interrupted
            continue
        broken = case.find("failure") is not None or case.find("error") is not None
        skipped = case.find("skipped") is not None
        counts["failed" if broken else "skipped" if skipped else "passed"] += 1
    return counts


def run(phases: tuple[Phase, ...], deadline: float, recorder: Recorder) -> bool:
    """Runs the phases until ``deadline`` (of ``time.time()``); whether the first one was green and
    none red."""
    good = True
    for phase in phases:
        left = deadline - time.time()
        if left < LEAST_S:
            result: dict[str, Any] = {"status": "not run: the budget was spent"}
        else:
            result = run_phase(phase, left)
        recorder.write(suite="gpu_tests", tiny=False, phase=phase.name, **result)
        print(f"{phase.name}: {result}", flush=True)
        good &= not result["status"].startswith(("red", "no test was selected"))
        good &= result["status"] == "green" or phase is not phases[0]
    return good


def main(
    budget_s: Annotated[float, typer.Option(help="seconds for everything")] = 200.0,
    results: Annotated[Path, typer.Option(help="folder for result rows")] = ROOT / "results",
) -> None:
    """Runs the tests that need a GPU, and says what did not fit the budget."""
    begun = time.time()
    if not torch.cuda.is_available():
        raise typer.BadParameter(
            f"Expected a CUDA device. Got none that torch {torch.__version__} can see."
        )
    device = torch.device("cuda")
    recorder = Recorder(results, "green", name_of(device), **versions(device))
    if not run(PHASES, begun + budget_s, recorder):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
