"""Result rows: one JSON object a line, under bench/results/<machine>/<commit>.jsonl."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

import sparsekern
from sparsekern._extension import native

ROOT = Path(__file__).resolve().parent


def machine_name() -> str:
    """Processor model, cores and ISA, fit for a folder name."""
    model = platform.processor() or platform.machine()
    try:
        text = Path("/proc/cpuinfo").read_text()
        model = re.findall(r"model name\s*: (.*)", text)[0]
        family = re.findall(r"cpu family\s*: (.*)", text)[0]
        number = re.findall(r"model\t*: (.*)", text)[0]
        model = f"{model} family {family} model {number}"
    except (OSError, IndexError):
        pass
    name = f"{model} {torch.get_num_threads()} threads {native.isa or 'none'}"
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def commit() -> str:
    """Short hash of HEAD, with -dirty when the tree differs from it.

    A copy of the tree that is no repository takes it from ``SPARSEKERN_COMMIT``.
    """
    command = ["git", "describe", "--always", "--dirty", "--abbrev=10", "--exclude=*"]
    try:
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        found = result.stdout.strip()
    except OSError:  # no git
        found = ""
    return found or os.environ.get("SPARSEKERN_COMMIT", "unknown")


class Recorder:
    """Appends rows as they are measured, each with everything needed to read it later.

    ``device`` names what the rows were measured on (default: this machine's processor); ``more`` is
    added to every row.
    """

    def __init__(self, folder: Path, gate: str, device: str | None = None, **more: Any) -> None:
        self.common: dict[str, Any] = {
            "device": device or machine_name(),
            "commit": commit(),
            "gate": gate,
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "threads": torch.get_num_threads(),
            "isa": native.isa,
            "torch": torch.__version__,
            "sparsekern": sparsekern.__version__,
            "python": platform.python_version(),
            **more,
        }
        self.path = folder / self.common["device"] / f"{self.common['commit']}.jsonl"
        self.path.parent.mkdir(parents=True, exist_ok=True)

    def write(self, **row: Any) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps({**row, **self.common}) + "\n")
