"""Times on disk: shared by processes, and ignored when they are anything else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from sparsekern.nn import times_cache
from sparsekern.nn.times_cache import FILE, TimesCache, cache_folder

TIMES = {"forward": {"panel": 1.0, "dense_layer": 2.0}}


def saved(folder: Path, *keys: str) -> TimesCache:
    cache = TimesCache(folder)
    for key in keys:
        cache.add(key, TIMES)
    cache.save()
    return cache


def test_saved_and_read(tmp_path: Path) -> None:
    folder = tmp_path / "not" / "there"
    assert TimesCache(folder).get("a") is None
    assert not folder.exists()
    saved(folder, "a")
    assert TimesCache(folder).get("a") == TIMES
    assert sorted(path.name for path in folder.iterdir()) == ["times.json", "times.lock"]


def test_two_processes_do_not_lose_each_others_times(tmp_path: Path) -> None:
    first, second = TimesCache(tmp_path), TimesCache(tmp_path)
    first.add("a", TIMES), second.add("b", TIMES)
    first.save(), second.save()
    assert TimesCache(tmp_path).get("a") == TimesCache(tmp_path).get("b") == TIMES


def test_writers_wait_for_each_other(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from sparsekern.nn.times_cache import TimesCache\n"
        "for i in range(20):\n"
        "    cache = TimesCache(Path(sys.argv[1]))\n"
        "    cache.add(f'{sys.argv[2]} {i}', {'forward': {'dense_layer': 1.0}})\n"
        "    cache.save()\n"
    )
    command = [sys.executable, "-W", "error", "-c", code, str(tmp_path)]
    writers = [subprocess.Popen([*command, name]) for name in "ab"]
    assert [writer.wait() for writer in writers] == [0, 0]
    assert len(json.loads((tmp_path / FILE).read_text())["times"]) == 40


def test_memory_alone() -> None:
    cache = TimesCache(None)
    cache.add("a", TIMES)
    cache.save()
    assert cache.get("a") == TIMES


def test_the_oldest_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(times_cache, "MAXIMUM_ENTRIES", 2)
    saved(tmp_path, "a", "b", "c")
    assert list(json.loads((tmp_path / FILE).read_text())["times"]) == ["b", "c"]


@pytest.mark.parametrize(
    "content",
    [
        "",
        "\x00\x01",
        "[]",
        "{}",
        '{"version": 2, "times": {}}',
        '{"version": 1}',
        '{"version": 1, "times": []}',
        '{"version": 1, "times": {"a": 3}}',
        '{"version": 1, "times": {"a": {"forward": {"dense_layer": -1}}}}',
        '{"version": 1, "times": {"a": {"forward": {"dense_layer": NaN}}}}',
        '{"version": 1, "times": {"a": {"forward": {"dense_layer": "1"}}}}',
        '{"version": 1, "times": {"a": {"forward": {"panel": 1}}}}',
        '{"version": 1, "times": {"a": {"backward": {"dense_layer": 1}}}}',
        '{"version": 1, "times": ' + "[" * 100_000,
    ],
)
def test_foreign_or_damaged_files(tmp_path: Path, content: str) -> None:
    """One warning of one line; the file is replaced when there is something to write."""
    (tmp_path / FILE).write_text(content)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        cache = TimesCache(tmp_path)
        cache.add("a", TIMES)
        cache.save()
    assert len(caught) == 1
    message = str(caught[0].message)
    assert message.startswith("sparsekern measures anew, ignoring the times in")
    assert "\n" not in message
    assert TimesCache(tmp_path).get("a") == TIMES


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"\xff\xfe\x00")
    with pytest.warns(UserWarning, match="sparsekern measures anew"):
        assert TimesCache(tmp_path).get("a") is None


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match="sparsekern keeps no measured times"):
        saved(tmp_path / "file", "a")


def test_an_interrupted_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(tmp_path, "a")
    before = (tmp_path / FILE).read_bytes()

    def fail(*_: object) -> None:
        raise OSError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.warns(UserWarning, match="the disk is full"):
            saved(tmp_path, "b")
    assert (tmp_path / FILE).read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["times.json", "times.lock"]


def test_where_it_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SPARSEKERN_CACHE_DIR", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
    monkeypatch.delenv("SPARSEKERN_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "sparsekern"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "sparsekern"
