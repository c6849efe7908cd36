"""`python -m bench.run [SUITES]`: the contract suite as a gate, then timing.

No number is published for code whose tests are red: the gate runs first, and ``--no-gate`` stamps
every row UNVERIFIED.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from bench import (
    block,
    changes,
    conv2d,
    linear,
    memory,
    networks,
    never_slower,
    optimizer,
    roofline,
    small_batch,
    step,
    topology,
    train,
)
from bench.record import ROOT, Recorder

SUITES = {
    "linear": linear.run,
    "small_batch": small_batch.run,
    "block": block.run,
    "conv2d": conv2d.run,
    "topology": topology.run,
    "changes": changes.run,
    "step": step.run,
    "networks": networks.run,
    "optimizer": optimizer.run,
    "memory": memory.run,
    "never_slower": never_slower.run,
    "train": train.run,
}
GATE = ["-q", "-x", "-m", "not slow and not gpu", "-k", "not compiled and not opcheck"]


def _gate(console: Console) -> str:
    console.print("gate: the contract suite of the ops ...")
    tests = str(ROOT.parent / "tests" / "ops")
    result = subprocess.run(
        [sys.executable, "-m", "pytest", tests, *GATE], capture_output=True, text=True, check=False
    )
    if result.returncode != 0:
        console.print(result.stdout[-2000:])
        console.print("[red]The contract suite is red: no numbers.[/red]")
        raise typer.Exit(1)
    return "green"


def main(
    suites: Annotated[
        list[str] | None, typer.Argument(help=f"{', '.join(SUITES)}; default: all")
    ] = None,
    budget_s: Annotated[float, typer.Option(help="seconds per suite")] = 240.0,
    gate: Annotated[bool, typer.Option(help="run the contract suite first")] = True,
    results: Annotated[Path, typer.Option(help="folder for result rows")] = ROOT / "results",
) -> None:
    """Measures the suites and appends their rows to the results."""
    console = Console(width=140)
    names = suites or list(SUITES)
    unknown = [name for name in names if name not in SUITES]
    if unknown:
        raise typer.BadParameter(
            f"Expected suites to be of {', '.join(SUITES)}. Got {unknown[0]!r}."
        )
    recorder = Recorder(results, _gate(console) if gate else "UNVERIFIED")
    for name in names:
        ceilings = roofline.measure()
        console.print(
            f"{recorder.common['device']}, torch {torch.__version__}: "
            f"FMA {ceilings.fma_gflops:.0f} GFLOP/s from registers, "
            f"{ceilings.fma_from_l1_gflops:.0f} from L1, copy {ceilings.copy_gbps:.0f} GB/s"
        )
        recorder.write(suite="ceilings", before=name, **ceilings.row())
        SUITES[name](recorder, console, budget_s)
    console.print(f"rows: {recorder.path}")


if __name__ == "__main__":
    typer.run(main)
