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


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"epoch": "1"}, "to have epoch of type int. Got '1'"),
        ({"seed": True}, "to have seed of type int. Got True"),
        ({"density": None}, "to have density of type float. Got None"),
        ({"network": 1}, "to have network of type str. Got 1"),
    ],
)
def test_row_of_another_kind(log: MetricsLog, changes: dict[str, object], sentence: str):
    log.append(_row("dense", 0, 1))
    log.append({**_row("dense", 0, 2), **changes})  # type: ignore[typeddict-item]
    with pytest.raises(ValueError) as error:
        log.rows()
    assert str(error.value) == f"Expected line 2 of {log.path} {sentence}: the file is damaged."


@pytest.mark.parametrize("line", ["[]", "3", "null", "{}"])
def test_line_without_a_row(log: MetricsLog, line: str):
    log.path.write_text(f"{line}\n")
    with pytest.raises(ValueError, match="to have network of type str. Got None: the file is"):
        log.rows()


def test_other_bytes(log: MetricsLog):
    log.path.write_bytes(b"\xff\xfe\n")
    with pytest.raises(ValueError, match="to be text. Got other bytes"):
        log.rows()


def test_missing_rows(log: MetricsLog):
    log.check_epochs("dense", 0, 0)
    for epoch in (1, 3):
        log.append(_row("dense", 0, epoch))
        log.append(_row("dense", 1, epoch))
    with pytest.raises(ValueError) as error:
        log.check_epochs("dense", 0, 3)
    assert str(error.value) == (
        f"Expected {log.path} to have a row for each of 3 epochs of dense, seed 0, which a "
        "checkpoint has. Got 2: the file is damaged; start over with --fresh."
    )


def test_damaged_line(log: MetricsLog):
    log.path.write_text("nonsense\n")
    with pytest.raises(ValueError) as error:
        log.rows()
    assert str(error.value) == (
        f"Expected {log.path} to hold one JSON object a line. Got 'nonsense'."
    )
