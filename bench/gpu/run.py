"""`python -m bench.gpu.run [SUITES]`: the gate, then the suites, within a budget of seconds.

`ceilings` and `suites` stand for all of their kind. The measuring is done by another process
(:mod:`bench.gpu.worker`): where a kernel takes the device or the process down, the next one goes on
behind the case that did it, and what a budget does not reach has a row `not run`.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated

import torch
import typer

from bench.gpu import pages
from bench.gpu.gate import red_ops
from bench.gpu.suites import ALL, CEILINGS, SUITES
from bench.gpu.worker import Job
from bench.record import ROOT

GROUPS = {"all-ceilings": tuple(CEILINGS), "all-suites": tuple(SUITES)}
GRACE_S = 30.0  # for the case that was begun before the deadline
GATE_PART = 0.4  # of the budget at most


def names_of(wanted: list[str] | None) -> tuple[str, ...]:
    """Suites by name, groups replaced by what is in them; nothing means everything."""
    found: dict[str, None] = {}
    for name in wanted or list(GROUPS):
        for each in GROUPS.get(name, (name,)):
            if each not in ALL:
                known = ", ".join([*GROUPS, *ALL])
                raise typer.BadParameter(f"Expected suites to be of {known}. Got {each!r}.")
            found[each] = None
    return tuple(found)


def supervise(job: Job) -> int:
    """Runs workers until one comes to the end of the job, or one comes no further than the last;
    how many it took."""
    journal, count = Path(job.journal), 0
    while True:
        count += 1
        before = journal.stat().st_size if journal.exists() else 0
        command = [sys.executable, "-m", "bench.gpu.worker", job.to_json()]
        left = max(job.deadline - time.time(), 0) + GRACE_S
        try:
            code = subprocess.run(command, cwd=ROOT.parent, timeout=left, check=False).returncode
        except subprocess.TimeoutExpired:
            code = -1
        if code == 0:
            return count
        print(f"The measuring process ended with {code}.", flush=True)
        if (journal.stat().st_size if journal.exists() else 0) == before:
            print("It came no further than the one before: no more is measured.", flush=True)
            return count


def main(
    suites: Annotated[
        list[str] | None, typer.Argument(help=f"{', '.join([*GROUPS, *ALL])}; default: all")
    ] = None,
    budget_s: Annotated[float, typer.Option(help="seconds for everything")] = 240.0,
    device: Annotated[str, typer.Option(help="cuda, cuda:1, ... or cpu")] = "cuda",
    tiny: Annotated[bool, typer.Option(help="sizes that only try the code")] = False,
    gate: Annotated[bool, typer.Option(help="run the contract tests of the ops first")] = True,
    results: Annotated[Path, typer.Option(help="folder for result rows")] = ROOT / "results",
) -> None:
    """Measures the suites and appends a row for everything that happens."""
    begun = time.time()
    names = names_of(suites)
    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        raise typer.BadParameter(
            f"Expected a CUDA device. Got none that torch {torch.__version__} can see; "
            "--device cpu --tiny tries the code."
        )
    if torch.device(device).type == "cpu" and not tiny:
        raise typer.BadParameter("Expected --tiny with --device cpu. Got real sizes.")
    red: dict[str, str] = {}
    if gate:
        ops = [op for name in names for op in ALL[name].ops]
        red = red_ops(ops, torch.device(device).type, GATE_PART * budget_s)
        for reason in dict.fromkeys(red.values()):
            print(f"gate: {reason}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        supervise(
            Job(
                names=names,
                device=device,
                tiny=tiny,
                gate="green" if gate else "UNVERIFIED",
                red=red,
                results=str(results),
                journal=str(Path(folder) / "journal"),
                deadline=begun + budget_s,
                date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            )
        )
    if not tiny:
        print(pages.goals(results), pages.ceilings(results), sep="\n\n", flush=True)
    if red:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
