"""Files and folders that appear as a whole."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sparsekern.train.files import remove_leftovers, write_atomically, write_folder_atomically


def _names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_write_replaces(tmp_path: Path):
    path = tmp_path / "file"
    for content in (b"one", b"two"):
        write_atomically(path, content)
        assert path.read_bytes() == content
    assert _names(tmp_path) == ["file"]


def test_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def fail(*args: object) -> None:
        raise OSError("broken")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="broken"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert _names(tmp_path) == ["file"]


def test_folder(tmp_path: Path):
    write_folder_atomically(tmp_path / "a" / "b", lambda folder: _fill(folder, "x", "y"))
    assert _names(tmp_path / "a") == ["b"]
    assert _names(tmp_path / "a" / "b") == ["x", "y"]


def _fill(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).write_text(name)


def test_failed_folder_leaves_nothing(tmp_path: Path):
    def fail(folder: Path) -> None:
        _fill(folder, "x")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_folder_atomically(tmp_path / "folder", fail)
    assert _names(tmp_path) == []


def test_leftovers(tmp_path: Path):
    (tmp_path / ".partial-a").mkdir()
    _fill(tmp_path / ".partial-a", "x")
    _fill(tmp_path, ".partial-b", "c")
    remove_leftovers(tmp_path)
    assert _names(tmp_path) == ["c"]
    remove_leftovers(tmp_path / "missing")
