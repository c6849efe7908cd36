"""Files and folders that are there as a whole or not at all, also after a power cut."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from sparsekern._files import TEMPORARY, sync, write_atomically

__all__ = ["remove_leftovers", "sync", "write_atomically", "write_folder_atomically"]


def write_folder_atomically(path: Path, fill: Callable[[Path], None]) -> None:
    """Lets ``fill`` write files into a folder of a temporary name, then renames it to ``path``.

    Every file and the folder are on the disk before the rename; if anything fails, nothing is left.
    """
    temporary = path.with_name(f"{TEMPORARY}{path.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        fill(temporary)
        for file in temporary.iterdir():
            sync(file)
        sync(temporary)
        os.rename(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync(path.parent)


def remove_leftovers(folder: Path) -> None:
    """Removes what an interrupted process left under temporary names."""
    for entry in folder.glob(f"{TEMPORARY}*"):
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink()
