"""Tables of sentences."""

from __future__ import annotations

import zlib
from pathlib import Path

import pytest
import torch

from sparsekern.data import DATASETS, Glue

TRAIN = "sentence\tlabel\nhide new secretions \t0\ncontains no wit , Only\t0\nlove é\t1\n"
DEV = "sentence\tlabel\nit 's charming\t1\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "train.tsv").write_text(TRAIN, "utf-8")
    (tmp_path / "dev.tsv").write_text(DEV, "utf-8")
    return tmp_path


def test_bytes(folder: Path):
    data = Glue(path=str(folder), tokens=10).load()
    assert data.train_x.shape == (3, 10)
    assert data.test_x.shape == (1, 10)
    assert data.train_x.dtype == data.train_y.dtype == torch.int64
    assert bytes(data.train_x[0].tolist()) == b"hide new s"
    assert bytes(data.train_x[2].tolist()) == "love é".encode() + b"\0\0\0"
    assert data.train_y.tolist() == [0, 0, 1]
    assert data.test_y.tolist() == [1]
    assert (data.vocabulary, data.classes, data.per_token) == (256, 2, False)


def test_words(folder: Path):
    data = Glue(path=str(folder), tokens=6, tokenizer="words", buckets=50).load()
    numbers = [1 + zlib.crc32(word) % 49 for word in (b"contains", b"no", b"wit", b",", b"only")]
    assert data.train_x[1].tolist() == [*numbers, 0]
    assert data.vocabulary == 50
    assert data.train_x.max() < 50


def test_two_columns_of_text_and_labels_of_letters(tmp_path: Path):
    header = "index\tsentence1\tsentence2\tlabel\n"
    (tmp_path / "train.tsv").write_text(header + "0\ta\tb\tnot_entailment\r\n1\tc\td\tentailment\n")
    (tmp_path / "test.tsv").write_text(header + '0\t"a\tb\tnot_entailment')
    data = Glue(
        path=str(tmp_path), columns=("sentence1", "sentence2"), test_file="test.tsv", tokens=5
    ).load()
    assert bytes(data.train_x[0].tolist()) == b"a\tb\0\0"
    assert bytes(data.test_x[0].tolist()) == b'"a\tb\0'
    assert data.train_y.tolist() == [1, 0]
    assert data.test_y.tolist() == [1]


@pytest.mark.parametrize(
    ("file", "content", "sentence"),
    [
        ("train.tsv", None, "Expected data.path to hold train.tsv. Got no {path}."),
        ("dev.tsv", b"\xff\xfe", "Expected {path} to be text in UTF-8. Got other bytes."),
        ("train.tsv", b"", "to name the column 'sentence'. Got nothing."),
        ("train.tsv", b"gj04\t1\t\tOur friends\n", "to name the column 'sentence'. Got gj04, 1"),
        (
            "train.tsv",
            b"sentence\tscore\na\t1\n",
            "to name the column 'label'. Got sentence, score",
        ),
        ("dev.tsv", b"sentence\tlabel\na\t1\nb\n", "line 3 of {path} to have 2 columns. Got 1."),
        ("dev.tsv", b"sentence\tlabel\na\t1\t2\n", "line 2 of {path} to have 2 columns. Got 3."),
        ("dev.tsv", b"sentence\tlabel\n", "Expected {path} to hold a line after the header. Got "),
        ("dev.tsv", b"sentence\tlabel\na\t2\n", "Expected the labels in {path} to be those in tra"),
        ("train.tsv", b"sentence\tlabel\na\t1\n", "to hold 2 to 100 classes. Got 1 different val"),
    ],
)
def test_bad_files(folder: Path, file: str, content: bytes | None, sentence: str):
    path = folder / file
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError) as error:
        Glue(path=str(folder)).load()
    assert sentence.format(path=path) in str(error.value)


def test_regression_is_refused(folder: Path):
    lines = "".join(f"a\t{i / 40}\n" for i in range(200))
    (folder / "train.tsv").write_text(f"sentence\tlabel\n{lines}")
    with pytest.raises(ValueError, match=r"2 to 100 classes\. Got 200 different values\."):
        Glue(path=str(folder)).load()


def test_no_path():
    with pytest.raises(ValueError, match=r"Got nothing: give it with --set data\.path=FOLDER\."):
        Glue().load()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"tokens": 0}, "Expected tokens to be above 0. Got 0."),
        ({"buckets": 1}, "Expected buckets to be above 1. Got 1."),
        ({"columns": ()}, "Expected columns to name at least one column. Got none."),
        ({"tokenizer": "bpe"}, "Expected tokenizer to be one of bytes, words. Got 'bpe'."),
    ],
)
def test_errors(options: dict[str, object], sentence: str):
    with pytest.raises(ValueError) as error:
        Glue(**options)  # type: ignore[arg-type]
    assert str(error.value) == sentence


def test_registered():
    assert DATASETS["glue"] is Glue
