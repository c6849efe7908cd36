"""``Session``: one process that measures cases on a device, with a row for whatever happens.

A row's ``status`` is "measured", "wrong: ..." (a rival's result is not the product), "not
available: ..." (a contender that cannot be built or run here) or "not run: ..." (no time, a red
gate, a process that died of the case). So a run that ends early, or on a machine that lacks
something, still says what it did not do.
"""

from __future__ import annotations

import faulthandler
import gc
import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from bench.gpu.stopwatch import Stopwatch
from bench.record import Recorder
from bench.timing import Times, interleave

Run = Callable[[], Any]
Maker = Callable[[], Run]

MEASURED = "measured"
LOST_DEVICE = 70  # exit status of a process whose device no longer answers
CASE_LIMIT_S = 60.0  # a case that takes longer hangs


class WrongResultError(Exception):
    """What a contender computes is not what is asked for, so its time is no speed."""


@dataclass(frozen=True)
class Work:
    """What one call must do at least: bytes through memory, and useful operations."""

    bytes: float = 0.0
    flops: float = 0.0


@dataclass(frozen=True)
class Ceilings:
    """Rates of this device, measured in the same process: GB/s read plus written, TFLOP/s."""

    copy_gbps: float
    bf16_tflops: float


Measure = Callable[["Session"], None]


@dataclass(frozen=True)
class Case:
    """One measurement: its name within the suite, and what measures it and writes its rows."""

    name: str
    run: Measure


@dataclass
class Comparison:
    """What the rows of one case have in common, and how their contenders are timed.

    Attributes:
        fields: op, pass, shape, pattern, density, dtype, ...
        works: by contender, for GB/s and TFLOP/s.
        dense, rival: names of the contenders that every row is compared with.
        cold, ahead: see :class:`Stopwatch`.
        seconds: for each contender.
    """

    fields: dict[str, Any]
    works: Mapping[str, Work] = field(default_factory=dict)
    dense: str = "dense"
    rival: str | None = None
    cold: bool = True
    ahead: bool = True
    seconds: float = 0.2


class Session:
    """Where cases run and rows go.

    Args:
        device: what is measured.
        tiny: sizes that take milliseconds, to try the code.
        recorder: of the rows.
        console: for people.
        deadline: of ``time.time()``, after which no case begins.
        journal: a file that remembers begun and ended cases, so that a process that died can be
            followed by another; None: none does.
    """

    def __init__(
        self,
        device: torch.device,
        tiny: bool,
        recorder: Recorder,
        console: Console,
        deadline: float,
        journal: Path | None = None,
    ) -> None:
        self.device, self.tiny, self.recorder, self.console = device, tiny, recorder, console
        self.deadline, self.journal = deadline, journal
        self.ceilings: Ceilings | None = None
        self.suite = ""
        entries = journal.read_text().splitlines() if journal and journal.exists() else []
        self._states = dict(json.loads(line) for line in entries)

    # Cases

    def run(self, suite: str, cases: Iterable[Case], why_not: str | None = None) -> None:
        """Runs the cases that are left; ``why_not`` lists them all as not run."""
        self.suite = suite
        for case in cases:
            self._run(case, why_not)

    def _run(self, case: Case, why_not: str | None) -> None:
        key = f"{self.suite}: {case.name}"
        state = self._states.get(key)
        if state == "ended":
            return
        if state == "begun":
            why_not = "the process ended while it was measured"
        elif why_not is None and time.time() > self.deadline:
            why_not = "the budget was spent"
        if why_not is not None:
            self.write(case=case.name, status=f"not run: {why_not}")
            self._note(key, "ended")
            return
        self._note(key, "begun")
        self._guarded(case)
        self._note(key, "ended")

    def _guarded(self, case: Case) -> None:
        """The case, whatever it raises; a case that hangs ends the process."""
        if self.device.type == "cuda":
            faulthandler.dump_traceback_later(CASE_LIMIT_S, exit=True)
        try:
            case.run(self)
        except Exception as error:  # a benchmark reports, it does not crash
            self.write(case=case.name, status=f"not available: {_sentence(error)}")
        finally:
            faulthandler.cancel_dump_traceback_later()
        gc.collect()
        self._check_alive()

    def _check_alive(self) -> None:
        """Ends the process if the device no longer answers: another one goes on."""
        if self.device.type != "cuda":
            return
        try:
            torch.cuda.synchronize(self.device)
            torch.cuda.empty_cache()
        except Exception as error:
            self.console.print(f"[red]{_sentence(error)}[/red]")
            sys.exit(LOST_DEVICE)

    def _note(self, key: str, state: str) -> None:
        self._states[key] = state
        if self.journal is not None:
            with self.journal.open("a") as file:
                file.write(json.dumps([key, state]) + "\n")

    # Measuring

    def compare(self, what: Comparison, makers: Mapping[str, Maker]) -> dict[str, Times]:
        """Times contenders in turns and writes a row for each; those that cannot be built or run
        here have a row that says why, and are left out."""
        runs: dict[str, Run] = {}
        peaks: dict[str, int] = {}
        for name, make in makers.items():
            try:
                runs[name], peaks[name] = self._built(make)
            except Exception as error:
                kind = "wrong" if isinstance(error, WrongResultError) else "not available"
                status = f"{kind}: {_sentence(error)}"
                self.write(**what.fields, variant=name, status=status)
                del error
                gc.collect()
        if not runs:
            return {}
        watch = Stopwatch(self.device, cold=what.cold, ahead=what.ahead)
        seconds = 0.0 if self.tiny else what.seconds * len(runs)
        times = interleave(runs, seconds, watch)
        for name, each in times.items():
            row = self._row(what, name, each, times)
            if peaks[name]:
                row["peak_bytes"] = peaks[name]
            self.write(**row)
        return times

    def _built(self, make: Maker) -> tuple[Run, int]:
        """A contender that has run once, and the bytes that it allocated meanwhile at most."""
        run = make()
        if self.device.type != "cuda":
            run()
            return run, 0
        torch.cuda.synchronize(self.device)
        before = torch.cuda.memory_allocated(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        run()
        torch.cuda.synchronize(self.device)
        return run, torch.cuda.max_memory_allocated(self.device) - before

    def _row(
        self, what: Comparison, name: str, times: Times, all_: Mapping[str, Times]
    ) -> dict[str, Any]:
        row = {**what.fields, "variant": name, "status": MEASURED, **times.row()}
        work = what.works.get(name, Work())
        if work.bytes:
            rate = work.bytes / times.p50 / 1e9
            row["gbps"] = round(rate, 2)
            if self.ceilings:
                row["of_copy"] = round(rate / self.ceilings.copy_gbps, 4)
        if work.flops:
            rate = work.flops / times.p50 / 1e12
            row["tflops"] = round(rate, 4)
            if self.ceilings:
                row["of_bf16_rate"] = round(rate / self.ceilings.bf16_tflops, 4)
        if what.dense in all_:
            dense = all_[what.dense].p50
            row["dense_ms"] = round(dense * 1e3, 5)
            row["speedup_over_dense"] = round(dense / times.p50, 4)
        if what.rival in all_:
            assert what.rival is not None
            rival = all_[what.rival].p50
            row["rival"], row["rival_ms"] = what.rival, round(rival * 1e3, 5)
            row["speedup_over_rival"] = round(rival / times.p50, 4)
        return row

    def write(self, **row: Any) -> None:
        """A row of the present suite; printed as one line too."""
        ceilings = vars(self.ceilings) if self.ceilings else {}
        rounded = {name: round(value, 2) for name, value in ceilings.items()}
        self.recorder.write(suite=f"gpu_{self.suite}", tiny=self.tiny, **row, **rounded)
        self.console.print(_line(self.suite, row), highlight=False, markup=False, soft_wrap=True)


def _sentence(error: Exception) -> str:
    """The first line of what went wrong."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:300]}"


_SHOWN = ("op", "pass", "shape", "pattern", "density", "dtype", "case", "variant")
_RESULTS = {
    "p50_ms": "{:.4g} ms",
    "gbps": "{:.0f} GB/s",
    "of_copy": "{:.0%} of copy",
    "tflops": "{:.1f} TFLOP/s",
    "of_bf16_rate": "{:.0%} of bf16",
    "speedup_over_dense": "{:.2f}x of dense",
    "speedup_over_rival": "{:.2f}x of the rival",
    "passes": "passes: {}",
    "lost": "lost: {}",
}


def _line(suite: str, row: dict[str, Any]) -> str:
    words = [str(row[name]) for name in _SHOWN if row.get(name) is not None]
    results = [text.format(row[name]) for name, text in _RESULTS.items() if name in row]
    status = row.get("status", "")
    end = ", ".join(results) if status == MEASURED else status
    return f"{suite}: {' '.join(words)}: {end}"
