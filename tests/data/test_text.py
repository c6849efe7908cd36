"""Text files as bytes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sparsekern.data import DATASETS, Text


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten files of 100 bytes, each of one letter, in two folders, and one of another kind."""
    for i in range(10):
        place = tmp_path / ("a" if i % 2 else "b") / "inner"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{i}.txt").write_text(chr(ord("a") + i) * 100)
    (tmp_path / "b" / "other.py").write_text("X" * 100)
    return tmp_path


def _text(folder: Path, **options: object) -> Text:
    return Text(path=str(folder), suffix=".txt", **options)  # type: ignore[arg-type]


def _letters(x: torch.Tensor) -> set[str]:
    return {chr(token) for token in x.unique().tolist()} - {"\0"}


def test_the_standard_library_is_there():
    data = Text(max_bytes=30_000, tokens=32).load()
    assert data.train_x.shape[1:] == data.test_x.shape[1:] == (32,)
    assert data.train_x.dtype == data.train_y.dtype == torch.int64
    assert (data.vocabulary, data.classes, data.per_token) == (256, 256, True)
    assert data.test_x.numel() > 0.09 * 30_000
    assert 0.9 * 30_000 < data.train_x.numel() + data.test_x.numel() < 1.1 * 30_000
    text = bytes(data.train_x.flatten().tolist())
    assert b"def " in text or b"import " in text


def test_labels_are_the_next_bytes(folder: Path):
    data = _text(folder, tokens=7).load()
    assert torch.equal(data.train_x[:, 1:], data.train_y[:, :-1])
    assert torch.equal(data.train_x.flatten()[1:], data.train_y.flatten()[:-1])


def test_split_by_files(folder: Path):
    data = _text(folder, tokens=10, test_fraction=0.25).load()
    assert len(_letters(data.test_x)) == 3
    assert len(_letters(data.train_x)) == 7
    assert not _letters(data.test_x) & _letters(data.train_x)
    assert (data.train_x == 0).sum() == 6  # between the files
    assert data.test_x.shape == (30, 10)  # 3 * 100 letters and 2 borders, of which 1 is a label


def test_same_files_same_data_and_other_seeds_other_data(folder: Path, tmp_path: Path):
    first, again = _text(folder).load(), _text(folder).load()
    assert torch.equal(first.train_x, again.train_x)
    assert torch.equal(first.test_y, again.test_y)
    others = [_text(folder, split_seed=seed).load() for seed in range(1, 4)]
    assert any(_letters(other.test_x) != _letters(first.test_x) for other in others)


def test_no_more_than_max_bytes_and_an_eighth_of_it_from_a_file(folder: Path):
    data = _text(folder, max_bytes=410, tokens=10).load()
    assert data.test_x.numel() == 50  # of 52 letters of a file
    assert len(_letters(data.test_x)) == 1
    assert data.train_x.numel() == 360  # of 6 * 52 + 46 letters and 6 borders
    assert len(_letters(data.train_x)) == 7


def test_at_least_one_file_stays_for_training(folder: Path):
    data = _text(folder, test_fraction=0.999, tokens=10).load()
    assert len(_letters(data.train_x)) == 1


def test_the_librarys_tests_and_other_packages_are_left_out(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    (folder / "site-packages").mkdir()
    (folder / "site-packages" / "package.py").write_text("Y" * 100)
    (folder / "own.py").write_text("Z" * 100)
    monkeypatch.setattr("sysconfig.get_path", lambda _: str(folder))
    data = Text(tokens=10).load()
    assert _letters(data.train_x) | _letters(data.test_x) == {"X", "Z"}
    data = Text(tokens=10, path=str(folder)).load()
    assert _letters(data.train_x) | _letters(data.test_x) == {"X", "Y", "Z"}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"tokens": 0}, "Expected tokens to be above 0. Got 0."),
        ({"max_bytes": 0}, "Expected max_bytes to be above 0. Got 0."),
        ({"test_fraction": 1.0}, "Expected test_fraction to be between 0 and 1. Got 1.0."),
        ({"path": "/no/such/folder"}, "Expected data.path to be a folder of text files. Got /no/"),
        ({"suffix": ".none"}, "to hold at least two files *.none with text within max_bytes"),
        ({"max_bytes": 1}, "to hold at least two files *.txt with text within max_bytes (1)."),
        ({"tokens": 100}, "Expected the test files in"),
        ({"tokens": 100, "test_fraction": 0.9}, "Expected the training files in"),
    ],
)
def test_errors(folder: Path, options: dict[str, object], sentence: str):
    with pytest.raises(ValueError) as error:
        Text(**{"path": str(folder), "suffix": ".txt", **options}).load()  # type: ignore[arg-type]
    assert sentence in str(error.value)
    assert " Got " in str(error.value)


def test_registered():
    assert DATASETS["text"] is Text
