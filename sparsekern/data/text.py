"""Running text as bytes: the files of the Python installation itself, or of a folder."""

from __future__ import annotations

import os
import sysconfig
import zlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sparsekern._checks import check_positive
from sparsekern.data.dataset import DATASETS, Dataset, Source

BYTES = 256
BORDER = b"\0"  # between two files
LEAST_FILES = 8  # no file has more than this part of the bytes
# Not part of every installation, or of other packages.
SKIPPED = {"site-packages", "dist-packages", "__pycache__", "test", "tests"}


@dataclass(frozen=True, kw_only=True)
class Text(Source):
    """Next-byte prediction on text files: real text that every machine has.

    A sample is a window of ``tokens`` bytes, its labels are the same bytes one place later. Windows
    follow each other without overlap; a zero byte stands between two files. Training and test set
    have no file in common.

    Which files: those with the suffix, ordered by the CRC-32 of seed and name, until there are
    ``max_bytes``; of each the beginning, at most an eighth of that. The first of them, with at
    least ``test_fraction`` of the bytes, are the test set. The same Python version gives the same
    bytes; another one has other files.

    Args:
        path: folder of the files, searched with all its subfolders; None: Python's standard
            library, without its tests and without other packages.
        suffix: how the names of the files end.
        tokens: length of a window, above 0.
        max_bytes: to read, above 0; a byte of text takes eight of memory.
        test_fraction: share of the bytes that are the test set (whole files), in (0, 1).
        split_seed: of the choice of files; the same for all seeds of a run.
    """

    path: str | None = None
    suffix: str = ".py"
    tokens: int = 64
    max_bytes: int = 2**19
    test_fraction: float = 0.1
    split_seed: int = 0

    def __post_init__(self) -> None:
        check_positive(self.tokens, "tokens")
        check_positive(self.max_bytes, "max_bytes")
        if not 0.0 < self.test_fraction < 1.0:
            raise ValueError(
                f"Expected test_fraction to be between 0 and 1. Got {self.test_fraction}."
            )

    def load(self) -> Dataset:
        """The dataset.

        Raises:
            ValueError: no such folder, fewer than two files, or too little text for a window.
            OSError: a file cannot be read.
        """
        folder = _folder(self.path)
        texts = self._read(folder)
        if len(texts) < 2:
            raise ValueError(
                f"Expected {folder} to hold at least two files *{self.suffix} with text within "
                f"max_bytes ({self.max_bytes}). Got {len(texts)}."
            )
        wanted = self.test_fraction * sum(map(len, texts))
        tests, size = 0, 0
        while size < wanted and tests < len(texts) - 1:
            size += len(texts[tests])
            tests += 1
        test_x, test_y = self._windows(folder, "test", texts[:tests])
        train_x, train_y = self._windows(folder, "training", texts[tests:])
        return Dataset(train_x, train_y, test_x, test_y, classes=BYTES, vocabulary=BYTES)

    def _read(self, folder: Path) -> list[bytes]:
        """The files that are read, in order, at most ``max_bytes`` in all."""
        texts, left = [], self.max_bytes
        for path in text_files(folder, self.suffix, self.split_seed, whole=self.path is not None):
            with path.open("rb") as file:
                text = file.read(min(left, -(-self.max_bytes // LEAST_FILES)))
            if text:
                texts.append(text)
            left -= len(text)
            if left == 0:
                break
        return texts

    def _windows(self, folder: Path, name: str, texts: list[bytes]) -> tuple[Tensor, Tensor]:
        """``[windows, tokens]`` of bytes and of those that follow them."""
        text = BORDER.join(texts)
        windows = (len(text) - 1) // self.tokens
        if windows < 1:
            raise ValueError(
                f"Expected the {name} files in {folder} to have more than tokens, {self.tokens}, "
                f"bytes. Got {len(text)}."
            )
        flat = torch.frombuffer(bytearray(text), dtype=torch.uint8).to(torch.int64)
        size = windows * self.tokens
        return flat[:size].view(windows, -1), flat[1 : size + 1].view(windows, -1)


def text_files(folder: Path, suffix: str, seed: int, whole: bool) -> list[Path]:
    """The files of a folder and its subfolders in an order that follows from seed and names.

    Args:
        folder: to search; links to folders are not followed.
        suffix: how the names end.
        seed: of the order.
        whole: whether to search all subfolders, or not those in :data:`SKIPPED`.
    """
    found = []
    for place, folders, files in os.walk(folder):
        if not whole:
            folders[:] = [name for name in folders if name not in SKIPPED]
        found += [Path(place) / name for name in files if name.endswith(suffix)]

    def order(path: Path) -> tuple[int, str]:
        name = path.relative_to(folder).as_posix()
        return zlib.crc32(f"{seed} {name}".encode()), name

    return sorted(found, key=order)


def _folder(path: str | None) -> Path:
    folder = Path(sysconfig.get_path("stdlib") if path is None else path).expanduser()
    if not folder.is_dir():
        raise ValueError(f"Expected data.path to be a folder of text files. Got {folder}.")
    return folder


DATASETS.add("text", Text)
