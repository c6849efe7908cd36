"""The table and the picture at the end of a run."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from sparsekern.train.metrics import Row
from sparsekern.train.report import draw_report, readable_bytes, report_table


def _network(accuracy: float, step_ms: float, weight_bytes: int, density: float) -> dict[str, Any]:
    return {
        "accuracy": accuracy,
        "accuracy_std": 0.001,
        "step_ms": step_ms,
        "forward_ms": 0.3 * step_ms,
        "backward_ms": 0.5 * step_ms,
        "update_ms": 0.2 * step_ms,
        "topology_ms": 20.0 if density < 1 else 0.0,
        "weight_bytes": weight_bytes,
        "index_bytes": 3 * weight_bytes if density < 1 else 0,
        "state_bytes": weight_bytes,
        "density": density,
        "train_s": 12.3,
        "width": 1.0,
    }


@pytest.fixture
def summary() -> dict[str, Any]:
    return {
        "recipe": "digits-rigl",
        "description": "",
        "dense": _network(0.975, 24.0, 17_000_000, 1.0),
        "sparse": _network(0.97, 6.0, 1_000_000, 0.05),
        "small_dense": _network(0.965, 6.1, 4_000_000, 1.0),
        "speedup": 4.0,
        "bytes_ratio": 5 / 34,
        "peak_bytes_ratio": 5 / 34,
        "seeds": [0],
        "versions": {"machine": "abacus", "threads": 2, "torch": "2.13", "isa": "avx2"},
    }


def _text(summary: dict[str, Any], width: int = 80) -> str:
    console = Console(width=width, file=io.StringIO())
    with console.capture() as capture:
        console.print(report_table(summary))
    return capture.get()


def _cells(text: str, name: str) -> list[list[str]]:
    return [line.removeprefix(name).split() for line in text.split("\n") if line.startswith(name)]


def test_table_says_accuracy_times_bytes_and_ratios(summary: dict[str, Any]):
    text = _text(summary)
    assert _cells(text, "dense") == [
        ["97.50", "24.00", "7.20", "12.00", "4.80", "1.00x", "12.3"],
        ["1", "17.0", "MB", "0", "B", "17.0", "MB", "34.0", "MB", "1.000x"],
    ]
    assert _cells(text, "sparse") == [
        ["97.00", "6.00", "1.80", "3.00", "1.20", "4.00x", "12.3"],
        ["0.05", "1.00", "MB", "3.00", "MB", "1.00", "MB", "5.00", "MB", "0.147x"],
    ]
    assert _cells(text, "small dense")[0][5] == "3.93x"
    assert "A step with a topology update takes 20.0 ms longer" in text
    assert "abacus, 2 threads, torch 2.13, avx2" in text
    assert "mid-run" not in text


def test_table_of_several_seeds_fits_into_80_columns(summary: dict[str, Any]):
    summary["seeds"] = [0, 1, 2]
    text = _text(summary)
    assert "mean of 3 seeds" in text
    assert "97.50 ± 0.10" in text
    assert "…" not in text
    assert max(len(line) for line in text.split("\n")) <= 80


def test_table_without_dense(summary: dict[str, Any]):
    del summary["dense"]
    summary |= {"speedup": None, "bytes_ratio": None, "peak_bytes_ratio": None}
    assert _cells(_text(summary), "sparse")[0][5] == "-"


def test_table_says_when_a_run_needed_more_memory(summary: dict[str, Any]):
    summary["peak_bytes_ratio"] = 1.03
    assert "The sparse network held up to 1.03x the dense bytes in mid-run." in _text(summary)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (17383424, "17.4 MB"),
        (999_600, "1.00 MB"),
        (123_456, "123 kB"),
        (5e12, "5.00 TB"),
    ],
)
def test_readable_bytes(count: float, text: str):
    assert readable_bytes(count) == text


@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize("dense", [True, False])
def test_picture(summary: dict[str, Any], tmp_path: Path, seeds: int, dense: bool):
    summary["seeds"] = list(range(seeds))
    names = ["dense", "sparse", "small_dense"]
    if not dense:
        del summary["dense"]
        summary |= {"speedup": None, "bytes_ratio": None}
        names = names[1:]
    rows = [
        Row(
            network=name,
            seed=seed,
            epoch=epoch,
            step=epoch,
            learning_rate=0.1,
            train_loss=1 / epoch,
            test_loss=1 / epoch,
            test_accuracy=1 - 0.3 / epoch,
            density=0.05,
        )
        for name in names
        for seed in range(seeds)
        for epoch in range(1, 5)
    ]
    path = tmp_path / "report.png"
    draw_report(summary, rows, path)
    content = path.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    assert len(content) > 20_000
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.png"]
