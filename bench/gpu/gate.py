"""The gate: no time is published of an op whose contract is broken on the device."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable
from pathlib import Path

from bench.record import ROOT

CONTRACT = ROOT.parent / "tests" / "ops" / "test_contract.py"
TESTS = "(matches_the_oracle or twice_and_any_threads) and (float32 or bfloat16)"
WORKERS = 8  # of pytest-xdist, where it is installed: Triton compiles in all of them


def workers() -> list[str]:
    """pytest's arguments to run in several processes, if it can."""
    if importlib.util.find_spec("xdist") is None:
        return []
    return ["-n", str(WORKERS), "-p", "no:cacheprovider"]


def red_ops(ops: Iterable[str], device: str, timeout_s: float) -> dict[str, str]:
    """Why each op's kernels must not be timed; ops that are fit are left out."""
    wanted = sorted(set(ops))
    if not wanted:
        return {}
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", str(CONTRACT), f"--junitxml={report}"]
        chosen = " or ".join(f"{op}-" for op in wanted)
        command += ["-k", f"{device}- and {TESTS} and ({chosen})", *workers()]
        try:
            subprocess.run(command, cwd=ROOT.parent, timeout=timeout_s, check=False)
        except subprocess.TimeoutExpired:
            return dict.fromkeys(wanted, f"the gate took more than {timeout_s:.0f} s")
        if not report.exists():
            return dict.fromkeys(wanted, "the gate did not run")
        return judge(report, wanted)


def judge(report: Path, ops: Iterable[str]) -> dict[str, str]:
    """What a report of the contract suite says of each op."""
    passed, failed = dict.fromkeys(ops, 0), dict.fromkeys(ops, 0)
    for case in ElementTree.parse(report).iter("testcase"):
        op = case.get("name", "").partition("[")[2].partition("-")[0]
        if op not in passed:
            continue
        if case.find("failure") is not None or case.find("error") is not None:
            failed[op] += 1
        elif case.find("skipped") is None:
            passed[op] += 1
    reasons = {op: f"{n} contract tests of {op} fail" for op, n in failed.items() if n}
    silent = [op for op in passed if not passed[op] and op not in reasons]
    return {**reasons, **{op: f"no contract test of {op} ran" for op in silent}}
