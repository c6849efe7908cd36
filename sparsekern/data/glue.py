"""Sentence classification from tables of tab-separated text, as GLUE's SST-2 has them."""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sparsekern._checks import check_positive
from sparsekern.data.dataset import DATASETS, Dataset, Source

BETWEEN = "\t"  # two columns of text
MAX_CLASSES = 100
TOKENIZERS = ("bytes", "words")


@dataclass(frozen=True, kw_only=True)
class Glue(Source):
    """A task of GLUE with a header line, text columns and a column of labels, from a local folder.

    The defaults fit SST-2; RTE has ``columns: [sentence1, sentence2]``, QNLI ``[question,
    sentence]``, QQP ``[question1, question2]`` and ``label: is_duplicate``. Labels are any text;
    they are numbered in sorted order. Regression (STS-B) and files without a header (CoLA) are
    refused. The test set of GLUE has no labels, so its development set is the test set here.

    There is no learned tokenizer. Text is cut after ``tokens`` tokens, shorter text is padded
    with 0:

    - "bytes": the bytes of the text in UTF-8, vocabulary 256;
    - "words": words and punctuation in lower case, as ``1 + crc32(word) % (buckets - 1)``;
      different words can share a number.

    Args:
        path: the folder of the files.
        train_file, test_file: their names.
        columns: of text; several are joined by a tab.
        label: the column of labels.
        tokenizer: "bytes" or "words".
        tokens: of a sample, above 0.
        buckets: vocabulary of "words", above 1.

    Reference: Wang et al., GLUE, 2019; Weinberger et al., Feature hashing, 2009.
    """

    path: str | None = None
    train_file: str = "train.tsv"
    test_file: str = "dev.tsv"
    columns: tuple[str, ...] = ("sentence",)
    label: str = "label"
    tokenizer: str = "bytes"
    tokens: int = 128
    buckets: int = 2**14

    def __post_init__(self) -> None:
        check_positive(self.tokens, "tokens")
        if self.buckets < 2:
            raise ValueError(f"Expected buckets to be above 1. Got {self.buckets}.")
        if not self.columns:
            raise ValueError("Expected columns to name at least one column. Got none.")
        if self.tokenizer not in TOKENIZERS:
            known = ", ".join(TOKENIZERS)
            raise ValueError(f"Expected tokenizer to be one of {known}. Got {self.tokenizer!r}.")

    def load(self) -> Dataset:
        """The dataset.

        Raises:
            ValueError: no path, no such files, or files that are not such tables.
            OSError: a file cannot be read.
        """
        if self.path is None:
            raise ValueError(
                "Expected data.path to be the folder of a GLUE task. Got nothing: give it with "
                "--set data.path=FOLDER."
            )
        folder = Path(self.path).expanduser()
        train, test = (self._read(folder / name) for name in (self.train_file, self.test_file))
        classes = sorted({label for _, label in train})
        if not 2 <= len(classes) <= MAX_CLASSES:
            raise ValueError(
                f"Expected column {self.label!r} of {folder / self.train_file} to hold 2 to "
                f"{MAX_CLASSES} classes. Got {len(classes)} different values."
            )
        unknown = sorted({label for _, label in test} - set(classes))
        if unknown:
            raise ValueError(
                f"Expected the labels in {folder / self.test_file} to be those in "
                f"{self.train_file}. Got {unknown[0]!r}."
            )
        numbers = {label: i for i, label in enumerate(classes)}

        def tensors(table: list[tuple[str, str]]) -> tuple[Tensor, Tensor]:
            x = torch.stack([self._encode(text) for text, _ in table])
            return x, torch.tensor([numbers[label] for _, label in table])

        vocabulary = 256 if self.tokenizer == "bytes" else self.buckets
        return Dataset(*tensors(train), *tensors(test), classes=len(classes), vocabulary=vocabulary)

    def _read(self, path: Path) -> list[tuple[str, str]]:
        """Text and label of every line of a file."""
        if not path.is_file():
            raise ValueError(f"Expected data.path to hold {path.name}. Got no {path}.")
        try:
            lines = path.read_text("utf-8").removesuffix("\n").split("\n")
        except UnicodeDecodeError:
            raise ValueError(f"Expected {path} to be text in UTF-8. Got other bytes.") from None
        header = lines[0].split("\t")
        for column in (*self.columns, self.label):
            if column not in header:
                raise ValueError(
                    f"Expected the first line of {path} to name the column {column!r}. "
                    f"Got {', '.join(header)[:80] or 'nothing'}."
                )
        places = [header.index(column) for column in self.columns]
        label = header.index(self.label)
        rows: list[tuple[str, str]] = []
        for number, line in enumerate(lines[1:], 2):
            cells = line.split("\t")
            if len(cells) != len(header):
                raise ValueError(
                    f"Expected line {number} of {path} to have {len(header)} columns. "
                    f"Got {len(cells)}."
                )
            rows.append((BETWEEN.join(cells[place] for place in places), cells[label]))
        if not rows:
            raise ValueError(f"Expected {path} to hold a line after the header. Got none.")
        return rows

    def _encode(self, text: str) -> Tensor:
        """``tokens`` numbers, 0 where the text has ended."""
        if self.tokenizer == "bytes":
            numbers = list(text.encode())
        else:
            words = re.findall(r"\w+|[^\w\s]", text.lower())
            numbers = [1 + zlib.crc32(word.encode()) % (self.buckets - 1) for word in words]
        numbers = numbers[: self.tokens]
        return torch.tensor(numbers + [0] * (self.tokens - len(numbers)))


DATASETS.add("glue", Glue)
