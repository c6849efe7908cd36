"""The log of metrics."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparsekern.train.metrics import MetricsLog, Row


def _row(network: str, seed: int, epoch: int) -> Row:
    return Row(
        network=network,
        seed=seed,
        epoch=epoch,
        step=7 * epoch,
        learning_rate=0.1,
        train_loss=0.1 + 0.2,
        test_loss=1 / 3,
        test_accuracy=0.5,
        density=0.05,
    )


@pytest.fixture
def log(tmp_path: Path) -> MetricsLog:
    return MetricsLog(tmp_path / "metrics.jsonl")


def test_no_file_yet(log: MetricsLog):
    assert log.rows() == []
    log.drop_after("sparse", 0, 3)
    log.sync()
    assert not log.path.exists()


def test_rows_come_back_bit_for_bit(log: MetricsLog):
    rows = [_row("dense", 0, 1), _row("sparse", 0, 1)]
    for row in rows:
        log.append(row)
    assert log.rows() == rows


def test_drop_after_touches_one_training(log: MetricsLog):
    rows = [_row(n, s, e) for n in ("dense", "sparse") for s in (0, 1) for e in (1, 2, 3)]
    for row in rows:
        log.append(row)
    log.drop_after("sparse", 1, 1)
    assert log.rows() == rows[:10]


def test_a_line_cut_off_by_a_kill_is_left_out(log: MetricsLog):
    log.append(_row("dense", 0, 1))
    with log.path.open("a") as file:
        file.write('{"network": "den')
    assert log.rows() == [_row("dense", 0, 1)]
    log.drop_after("dense", 0, 1)
    log.append(_row("dense", 0, 2))
    assert log.rows() == [_row("dense", 0, 1), _row("dense", 0, 2)]


def test_damaged_line(log: MetricsLog):
    log.path.write_text("nonsense\n")
    with pytest.raises(ValueError) as error:
        log.rows()
    assert str(error.value) == (
        f"Expected {log.path} to hold one JSON object a line. Got 'nonsense'."
    )
