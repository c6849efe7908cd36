"""`python -m bench.gpu.worker`: the process that measures; :mod:`bench.gpu.run` starts it."""

from __future__ import annotations

import json
import platform
import re
import sys
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from rich.console import Console

from bench.gpu import machine
from bench.gpu.session import Session
from bench.gpu.suites import ALL
from bench.record import Recorder, machine_name
from sparsekern._extension import cuda


@dataclass(frozen=True)
class Job:
    """What is measured, where, until when; passed on as JSON.

    Attributes:
        names: of suites, in order.
        red: why an op must not be timed, by op.
        journal: see :class:`Session`.
        deadline: of ``time.time()``.
        date: of the run, the same for all of its processes.
    """

    names: tuple[str, ...]
    device: str
    tiny: bool
    gate: str
    red: dict[str, str]
    results: str
    journal: str
    deadline: float
    date: str

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Job:
        values = json.loads(text)
        return cls(**{**values, "names": tuple(values["names"])})


def name_of(device: torch.device) -> str:
    """The device, fit for a folder name."""
    if device.type != "cuda":
        return machine_name()
    name = torch.cuda.get_device_name(device).lower()
    return re.sub(r"[^a-z0-9]+", "-", name).strip("-")


def versions(device: torch.device) -> dict[str, str | None]:
    """What else decides a time."""
    try:
        triton = version("triton")
    except PackageNotFoundError:
        triton = None
    found = {"triton": triton, "cuda": torch.version.cuda, "host": platform.node()}
    found["cuda_library"] = cuda.build or cuda.reason
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        found["capability"] = f"{major}.{minor}"
    return found


def work(job: Job, console: Console) -> None:
    """Measures what is left of a job."""
    device = torch.device(job.device)
    more = {**versions(device), "date": job.date}
    recorder = Recorder(Path(job.results), job.gate, name_of(device), **more)
    journal = Path(job.journal) if job.journal else None
    session = Session(device, job.tiny, recorder, console, job.deadline, journal)
    torch.manual_seed(0)
    if job.tiny:
        torch.set_num_threads(1)  # threads of a busy machine wait for each other
    session.ceilings = machine.measure(device, job.tiny)
    for name in job.names:
        suite = ALL[name]
        reasons = [job.red[op] for op in suite.ops if op in job.red]
        session.run(name, suite.cases(job.tiny), reasons[0] if reasons else None)
    console.print(f"rows: {recorder.path}", soft_wrap=True)


if __name__ == "__main__":
    work(Job.from_json(sys.argv[1]), Console())
