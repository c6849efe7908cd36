"""The gate: no time is published of an op whose contract is broken on the device."""

from __future__ import annotations

import itertools
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable
from pathlib import Path

from bench.gpu.shards import processes, run_pytest
from bench.record import ROOT

CONTRACT = ROOT.parent / "tests" / "ops" / "test_contract.py"
TESTS = "(matches_the_oracle or twice_and_any_threads) and (float32 or bfloat16)"


def red_ops(ops: Iterable[str], device: str, timeout_s: float) -> dict[str, str]:
    """Why each op's kernels must not be timed; ops that are fit are left out.

    One family after the other, in the order of ``ops``: where the time is too short for all, the
    first ones are judged.
    """
    until, wanted = time.monotonic() + timeout_s, list(dict.fromkeys(ops))
    red: dict[str, str] = {}
    for family in dict.fromkeys(op.partition("_")[0] for op in wanted):
        own = [op for op in wanted if op.startswith(f"{family}_")]
        red |= _red_of(family, own, device, max(until - time.monotonic(), 1.0))
    return red


def _red_of(family: str, wanted: list[str], device: str, timeout_s: float) -> dict[str, str]:
    """The same of one family's ops."""
    chosen = " or ".join(f"{op}-" for op in wanted)
    selection = [str(CONTRACT), "-k", f"{device}- and {TESTS} and ({chosen})"]
    count = processes()
    with tempfile.TemporaryDirectory() as folder:
        only = {"SPARSEKERN_TEST_FAMILY": f"{family}_"}
        outcome = run_pytest(selection, timeout_s, Path(folder), count, only)
        if not outcome.ended:
            return dict.fromkeys(wanted, f"the gate took more than {timeout_s:.0f} s")
        if len(outcome.reports) < count:  # which ops it had is not known
            return dict.fromkeys(wanted, "a process of the gate died")
        return judge(outcome.reports, wanted)


def judge(reports: Iterable[Path], ops: Iterable[str]) -> dict[str, str]:
    """What the reports of the contract suite say of each op."""
    passed, failed = dict.fromkeys(ops, 0), dict.fromkeys(ops, 0)
    cases = (ElementTree.parse(report).iter("testcase") for report in reports)
    for case in itertools.chain.from_iterable(cases):
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
