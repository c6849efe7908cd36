"""Measured times on disk, so that the same layers are not measured anew in each process."""

from __future__ import annotations

import json
import math
import os
import platform
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from sparsekern._checks import warn
from sparsekern.formats.plan import DENSE_LAYER
from sparsekern.nn.measure import Times

VERSION = 1
MAXIMUM_ENTRIES = 4096  # the oldest go
FILE = "times.json"


def cache_folder() -> Path:
    """``SPARSEKERN_CACHE_DIR``, else ``sparsekern`` in the user's cache folder."""
    named = os.environ.get("SPARSEKERN_CACHE_DIR")
    if named:
        return Path(named)
    if os.name == "nt":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "sparsekern"


def device_name(device: torch.device) -> str:
    """The model name of a processor or a graphics card."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return processor_name() if device.type == "cpu" else device.type


def processor_name() -> str:
    """The model name of this machine's processor."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = re.findall(
            r"^model name\s*: (.*)", cpuinfo.read_text("utf-8", errors="replace"), re.MULTILINE
        )
        name = models[0] if models else name
    return name


class TimesCache:
    """Times by key. They are read when first asked for and written by :meth:`save`.

    A file that is damaged or not of this version is ignored with one warning and replaced at the
    next save; a folder that cannot be written to costs one warning.

    Args:
        folder: of the file; None keeps the times in memory.
    """

    def __init__(self, folder: Path | None) -> None:
        self.path = None if folder is None else folder / FILE
        self._entries: dict[str, Times] = {}
        self._new: dict[str, Times] = {}
        if self.path is not None:
            self._entries = _read(self.path)

    def get(self, key: str) -> Times | None:
        """The times that were measured for this key, if there are any."""
        return self._entries.get(key)

    def add(self, key: str, times: Times) -> None:
        """Remembers new times."""
        self._entries[key] = self._new[key] = times

    def save(self) -> None:
        """Adds the new times to the file, which other processes may have written to since."""
        if self.path is None or not self._new:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with _locked(self.path.with_suffix(".lock")):
                entries = _read(self.path, loud=False) | self._new
                kept = dict(list(entries.items())[-MAXIMUM_ENTRIES:])
                _replace(self.path, json.dumps({"version": VERSION, "times": kept}))
        except OSError as error:
            warn(f"sparsekern keeps no measured times: {error}")
        self._new = {}


def _read(path: Path, loud: bool = True) -> dict[str, Times]:
    try:
        values = json.loads(path.read_text("utf-8"))
        if not isinstance(values, dict) or values.get("version") != VERSION:
            raise ValueError(f"it is not of version {VERSION}")
        entries: dict[str, Times] = values["times"]
        if not isinstance(entries, dict) or not all(map(_is_times, entries.values())):
            raise ValueError("it holds something else than times")
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError, KeyError, RecursionError) as error:
        if loud:
            reason = str(error).split("\n")[0]
            warn(f"sparsekern measures anew, ignoring the times in {path}: {reason}")
        return {}
    return entries


def _is_times(value: Any) -> bool:
    """Whether it is what ``time_layer`` returns."""
    if not isinstance(value, dict) or not set(value) <= {"forward", "forward_backward"}:
        return False
    return "forward" in value and all(
        isinstance(times, dict)
        and DENSE_LAYER in times
        and all(type(ms) in (int, float) and math.isfinite(ms) and ms > 0 for ms in times.values())
        for times in value.values()
    )


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Waits for the other processes of this user that write."""
    try:
        import fcntl
    except ImportError:  # Windows: the file is whole at any time, but times may get lost
        yield
        return
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _replace(path: Path, text: str) -> None:
    """The new content appears at once, as a whole."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".partial-")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
