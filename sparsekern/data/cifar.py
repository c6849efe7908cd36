"""CIFAR-10 and CIFAR-100 from a folder, in the official binary or python version."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from sparsekern._checks import check_positive
from sparsekern.data.dataset import DATASETS, Dataset, Source
from sparsekern.data.images import CropAndFlip, Standardize
from sparsekern.data.safe_pickle import read_pickle

IMAGE = (3, 32, 32)
PIXELS = 3 * 32 * 32
WEB = "https://www.cs.toronto.edu/~kriz/cifar.html"


@dataclass(frozen=True)
class Version:
    """The files of one version of a release.

    Attributes:
        pickled: whether the files are pickles ("python version") or records ("binary version").
        folder: what its archive extracts to.
        train: names of the training files, in order.
        test: name of the test file.
    """

    pickled: bool
    folder: str
    train: tuple[str, ...]
    test: str


@dataclass(frozen=True)
class Release:
    """What is known of a release beforehand; all of it is checked.

    Attributes:
        title: its name.
        classes: number of classes.
        label_bytes: before the pixels of a binary record; the last of them is the label.
        label_key: of the labels in a pickled dict.
        train_samples, test_samples: of each training file, of the test file.
        versions: its two versions.
    """

    title: str
    classes: int
    label_bytes: int
    label_key: str
    train_samples: int
    test_samples: int
    versions: tuple[Version, Version]


CIFAR10 = Release(
    title="CIFAR-10",
    classes=10,
    label_bytes=1,
    label_key="labels",
    train_samples=10_000,
    test_samples=10_000,
    versions=(
        Version(
            False,
            "cifar-10-batches-bin",
            tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
            "test_batch.bin",
        ),
        Version(
            True,
            "cifar-10-batches-py",
            tuple(f"data_batch_{i}" for i in range(1, 6)),
            "test_batch",
        ),
    ),
)
CIFAR100 = Release(
    title="CIFAR-100",
    classes=100,
    label_bytes=2,
    label_key="fine_labels",
    train_samples=50_000,
    test_samples=10_000,
    versions=(
        Version(False, "cifar-100-binary", ("train.bin",), "test.bin"),
        Version(True, "cifar-100-python", ("train",), "test"),
    ),
)


@dataclass(frozen=True, kw_only=True)
class Cifar(Source):
    """The part that CIFAR-10 and CIFAR-100 share.

    Images are ``[3, 32, 32]``; they stay uint8 in memory (180 MB) and are standardised per channel
    by the statistics of the training set, batch by batch.

    Args:
        path: the folder of the files, or the one that holds their extracted folder. The binary and
            the python version are told apart by the files found.
        augment: crop (after padding) and flip training images at random.
        padding: pixels of black on each side before the crop, above 0.

    Reference: Krizhevsky, Learning multiple layers of features from tiny images, 2009.
    """

    path: str | None = None
    augment: bool = True
    padding: int = 4

    release: ClassVar[Release]

    def __post_init__(self) -> None:
        check_positive(self.padding, "padding")

    def load(self) -> Dataset:
        """The dataset.

        Raises:
            ValueError: no path, no such files, or files that are not what they should be.
            OSError: a file cannot be read.
        """
        release = self.release
        folder, version = _find(release, self.path)
        train_x, train_y = _read(release, version, folder, version.train, release.train_samples)
        test_x, test_y = _read(release, version, folder, (version.test,), release.test_samples)
        return Dataset(
            train_x,
            train_y,
            test_x,
            test_y,
            release.classes,
            prepare=Standardize.of(train_x),
            augment=CropAndFlip(self.padding) if self.augment else None,
        )


@dataclass(frozen=True, kw_only=True)
class Cifar10(Cifar):
    """CIFAR-10: 50000 + 10000 images of 10 classes.

    Args:
        path, augment, padding: see :class:`Cifar`.
    """

    release: ClassVar[Release] = CIFAR10


@dataclass(frozen=True, kw_only=True)
class Cifar100(Cifar):
    """CIFAR-100: 50000 + 10000 images of 100 classes (the fine labels).

    Args:
        path, augment, padding: see :class:`Cifar`.
    """

    release: ClassVar[Release] = CIFAR100


def _find(release: Release, path: str | None) -> tuple[Path, Version]:
    """The folder that holds a version of the release, complete."""
    if path is None:
        raise ValueError(
            f"Expected data.path to be the folder of {release.title}. Got nothing: give it with "
            f"--set data.path=FOLDER ({WEB} has the files)."
        )
    root = Path(path).expanduser()
    if not root.is_dir():
        got = "a file: extract it" if root.exists() else "no such folder"
        raise ValueError(
            f"Expected data.path to be the folder of {release.title}. Got {root}, {got}."
        )
    incomplete = ""
    for version in release.versions:
        names = (*version.train, version.test)
        for folder in (root, root / version.folder):
            missing = [name for name in names if not (folder / name).is_file()]
            if not missing:
                return folder, version
            if len(missing) < len(names):
                incomplete = f"Expected {folder} to hold {', '.join(names)}. Got no {missing[0]}."
    if incomplete:
        raise ValueError(incomplete)
    binary, python = release.versions
    raise ValueError(
        f"Expected {root} to hold {binary.train[0]} (the binary version of {release.title}) or "
        f"{python.train[0]} (the python version), or {binary.folder} or {python.folder} with "
        "them. Got none of these."
    )


def _read(
    release: Release, version: Version, folder: Path, names: tuple[str, ...], samples: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels uint8 ``[samples, 3, 32, 32]`` and labels int64 of some files, one after another."""
    pixels = torch.empty((samples * len(names), *IMAGE), dtype=torch.uint8)
    labels = torch.empty(samples * len(names), dtype=torch.int64)
    read = _read_pickled if version.pickled else _read_binary
    for i, name in enumerate(names):
        own = slice(i * samples, (i + 1) * samples)
        file_pixels, file_labels = read(release, folder / name, samples)
        for label in file_labels:
            if not 0 <= label < release.classes:
                raise ValueError(
                    f"Expected the labels in {folder / name} to be in [0, {release.classes}). "
                    f"Got {label}."
                )
        pixels[own] = torch.from_numpy(file_pixels).view(samples, *IMAGE)
        labels[own] = torch.tensor(file_labels)
    return pixels, labels


def _read_binary(release: Release, path: Path, samples: int) -> tuple[np.ndarray, list[int]]:
    """A file of records: label bytes, then 1024 bytes each of red, green and blue."""
    record = release.label_bytes + PIXELS
    size = path.stat().st_size
    if size != samples * record:
        raise ValueError(
            f"Expected {path} to have {samples * record} bytes ({samples} images of {record}). "
            f"Got {size}."
        )
    records = np.fromfile(path, np.uint8).reshape(samples, record)
    return records[:, release.label_bytes :], records[:, release.label_bytes - 1].tolist()


def _read_pickled(release: Release, path: Path, samples: int) -> tuple[np.ndarray, list[int]]:
    """A pickled dict with ``data`` and the labels, which is read without being executed."""
    content = read_pickle(path)
    if not isinstance(content, dict):
        raise ValueError(f"Expected {path} to hold a dict. Got a {type(content).__name__}.")
    entries: dict[str, Any] = {
        key.decode("latin-1") if isinstance(key, bytes) else str(key): value
        for key, value in content.items()
    }
    for key in ("data", release.label_key):
        if key not in entries:
            known = ", ".join(sorted(entries)) or "no keys"
            raise ValueError(
                f"Expected {path} to be of {release.title}, with the key {key!r}. Got {known}."
            )
    pixels, labels = entries["data"], entries[release.label_key]
    if not isinstance(pixels, np.ndarray) or pixels.shape != (samples, PIXELS):
        got = pixels.shape if isinstance(pixels, np.ndarray) else f"a {type(pixels).__name__}"
        raise ValueError(
            f"Expected 'data' in {path} to be an array of shape ({samples}, {PIXELS}). Got {got}."
        )
    if not isinstance(labels, list) or not all(type(label) is int for label in labels):
        raise ValueError(
            f"Expected {release.label_key!r} in {path} to be a list of whole numbers. "
            "Got something else."
        )
    if len(labels) != samples:
        raise ValueError(
            f"Expected {release.label_key!r} in {path} to hold {samples} labels. Got {len(labels)}."
        )
    return pixels.copy(), labels  # a copy, because the bytes of a file are read-only


DATASETS.add("cifar10", Cifar10)
DATASETS.add("cifar100", Cifar100)
