"""CIFAR-10 and -100 from folders, in both versions, whole and damaged."""

from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sparsekern.data import DATASETS, Cifar10, Cifar100
from sparsekern.data.cifar import CIFAR10, CIFAR100, Cifar, Release

TRAIN, TEST = 6, 4  # images of a file in these tests
SOURCES = [Cifar10, Cifar100]


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files with few images: 10000 of them take long to write."""
    for source in SOURCES:
        small = dataclasses.replace(source.release, train_samples=TRAIN, test_samples=TEST)
        monkeypatch.setattr(source, "release", small)


def _content(release: Release, name: str, samples: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixels and labels of a file, by its name without the ending."""
    random = np.random.default_rng(sum(name.removesuffix(".bin").encode()))
    pixels = random.integers(0, 256, (samples, 3072), dtype=np.uint8)
    return pixels, random.integers(0, release.classes, samples)


def _python_2_pickle(content: dict[str, Any]) -> bytes:
    """The opcodes that Python 2 writes: text as BINSTRING, arrays by ``_reconstruct``."""

    def text(value: bytes) -> bytes:
        if len(value) < 256:
            return b"U" + bytes([len(value)]) + value
        return b"T" + len(value).to_bytes(4, "little") + value

    def integer(value: int) -> bytes:
        return b"K" + bytes([value]) if value < 256 else b"M" + value.to_bytes(2, "little")

    def any_value(value: Any) -> bytes:
        if isinstance(value, str):
            return text(value.encode())
        if isinstance(value, list):
            return b"](" + b"".join(map(any_value, value)) + b"e"
        if isinstance(value, np.ndarray):
            rows, columns = value.shape
            return (
                b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01"
                + integer(rows)
                + integer(columns)
                + b"\x86cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ"
                b"\xff\xff\xff\xffK\x00tb\x89" + text(value.tobytes()) + b"tb"
            )
        return integer(value)

    pairs = b"".join(any_value(key) + any_value(value) for key, value in content.items())
    return b"\x80\x02}(" + pairs + b"u."


def _entries(release: Release, name: str, samples: int) -> dict[str, Any]:
    pixels, labels = _content(release, name, samples)
    entries = {
        "batch_label": "a batch",
        release.label_key: labels.tolist(),
        "data": pixels,
        "filenames": [f"{i}.png" for i in range(samples)],
    }
    if release.title == "CIFAR-100":
        entries["coarse_labels"] = [0] * samples
    return entries


def _write(root: Path, release: Release, kind: str) -> Path:
    """A small release of one version in the folder that its archive has."""
    version = release.versions[0 if kind == "binary" else 1]
    folder = root / version.folder
    folder.mkdir()
    for name in (*version.train, version.test):
        samples = TEST if name == version.test else TRAIN
        if kind == "binary":
            pixels, labels = _content(release, name, samples)
            coarse = np.zeros((samples, release.label_bytes - 1), np.uint8)
            records = np.hstack([coarse, labels[:, None].astype(np.uint8), pixels])
            (folder / name).write_bytes(records.tobytes())
        else:
            entries = _entries(release, name, samples)
            python_3 = kind == "python 3"
            content = pickle.dumps(entries, 2) if python_3 else _python_2_pickle(entries)
            (folder / name).write_bytes(content)
    return folder


def _sentence(path: Path | str | None, source: type[Cifar] = Cifar10) -> str:
    with pytest.raises(ValueError) as error:
        source(path=None if path is None else str(path)).load()
    return str(error.value)


@pytest.mark.parametrize("kind", ["binary", "python 2", "python 3"])
@pytest.mark.parametrize("source", SOURCES)
def test_every_version(tmp_path: Path, source: type[Cifar], kind: str):
    release = source.release
    folder = _write(tmp_path, release, kind)
    inner, outer = (source(path=str(path)).load() for path in (folder, tmp_path))
    files = len(release.versions[0].train)
    assert inner.train_x.shape == (TRAIN * files, 3, 32, 32)
    assert inner.test_x.shape == (TEST, 3, 32, 32)
    assert inner.train_x.dtype == torch.uint8
    assert inner.train_y.dtype == torch.int64
    assert inner.classes == release.classes
    assert inner.input_shape == (3, 32, 32)
    assert torch.equal(inner.train_x, outer.train_x)
    version = release.versions[0]
    whole = [_content(release, name, TRAIN) for name in version.train]
    pixels = np.concatenate([part[0] for part in whole])
    assert np.array_equal(inner.train_x.flatten(1).numpy(), pixels)
    assert inner.train_y.tolist() == np.concatenate([part[1] for part in whole]).tolist()
    test_pixels, test_labels = _content(release, version.test, TEST)
    assert np.array_equal(inner.test_x.flatten(1).numpy(), test_pixels)
    assert inner.test_y.tolist() == test_labels.tolist()


def test_batches_are_standardised_by_the_training_set(tmp_path: Path):
    data = Cifar10(path=str(_write(tmp_path, Cifar10.release, "binary")), augment=False).load()
    (x, _), *_ = data.train_batches(30, seed=0, epoch=0)
    assert x.mean((0, 2, 3)).abs().max() < 1e-5
    assert torch.allclose(x.std((0, 2, 3), correction=0), torch.ones(3), atol=1e-4)
    assert data.augment is None


def test_augmentation_is_an_option(tmp_path: Path):
    folder = str(_write(tmp_path, Cifar10.release, "binary"))
    plain, augmented = (Cifar10(path=folder, augment=augment).load() for augment in (False, True))
    (x, y), *_ = plain.train_batches(30, seed=0, epoch=0)
    (other_x, other_y), *_ = augmented.train_batches(30, seed=0, epoch=0)
    assert torch.equal(y, other_y)
    assert not torch.equal(x, other_x)


def test_official_sizes():
    """What the two releases really hold."""
    assert CIFAR10.train_samples * len(CIFAR10.versions[0].train) == 50_000
    assert CIFAR100.train_samples * len(CIFAR100.versions[0].train) == 50_000
    for release, record in ((CIFAR10, 3073), (CIFAR100, 3074)):
        assert release.test_samples == 10_000
        assert release.label_bytes + 3072 == record


def test_a_complete_version_beside_an_incomplete_one(tmp_path: Path):
    binary = _write(tmp_path, Cifar10.release, "binary")
    _write(tmp_path, Cifar10.release, "python 2")
    (binary / "test_batch.bin").unlink()
    assert len(Cifar10(path=str(tmp_path)).load().test_x) == TEST


def test_no_path():
    assert _sentence(None).startswith(
        "Expected data.path to be the folder of CIFAR-10. Got nothing: give it with "
        "--set data.path=FOLDER (https://www.cs.toronto.edu/"
    )


def test_no_folder(tmp_path: Path):
    sentence = f"Expected data.path to be the folder of CIFAR-10. Got {tmp_path / 'no'}, no such"
    assert _sentence(tmp_path / "no").startswith(sentence)
    archive = tmp_path / "cifar-10-python.tar.gz"
    archive.write_bytes(b"")
    assert _sentence(archive).endswith(f"Got {archive}, a file: extract it.")


def test_a_folder_of_something_else(tmp_path: Path):
    _write(tmp_path, Cifar100.release, "python 2")
    assert _sentence(tmp_path) == (
        f"Expected {tmp_path} to hold data_batch_1.bin (the binary version of CIFAR-10) or "
        "data_batch_1 (the python version), or cifar-10-batches-bin or cifar-10-batches-py with "
        "them. Got none of these."
    )


@pytest.mark.parametrize("kind", ["binary", "python 2"])
def test_missing_file(tmp_path: Path, kind: str):
    folder = _write(tmp_path, Cifar10.release, kind)
    name = "data_batch_3" + (".bin" if kind == "binary" else "")
    (folder / name).unlink()
    sentence = _sentence(tmp_path)
    assert sentence.startswith(f"Expected {folder} to hold data_batch_1")
    assert sentence.endswith(f"Got no {name}.")


@pytest.mark.parametrize("change", [-1, 1, -3073])
def test_binary_file_of_another_size(tmp_path: Path, change: int):
    path = _write(tmp_path, Cifar10.release, "binary") / "data_batch_2.bin"
    path.write_bytes((path.read_bytes() + b"\0")[: TRAIN * 3073 + change])
    assert _sentence(tmp_path) == (
        f"Expected {path} to have {TRAIN * 3073} bytes ({TRAIN} images of 3073). "
        f"Got {TRAIN * 3073 + change}."
    )


def test_binary_label_out_of_range(tmp_path: Path):
    path = _write(tmp_path, Cifar10.release, "binary") / "test_batch.bin"
    content = bytearray(path.read_bytes())
    content[3073] = 10
    path.write_bytes(content)
    assert _sentence(tmp_path) == f"Expected the labels in {path} to be in [0, 10). Got 10."


def test_truncated_pickle(tmp_path: Path):
    path = _write(tmp_path, Cifar10.release, "python 2") / "data_batch_5"
    path.write_bytes(path.read_bytes()[:9000])
    assert _sentence(tmp_path).startswith(
        f"Expected {path} to be a whole pickle file. Got: expected {TRAIN * 3072} bytes"
    )


def test_pickle_that_wants_to_run_something(tmp_path: Path):
    path = _write(tmp_path, Cifar100.release, "python 2") / "train"
    path.write_bytes(b"\x80\x02}U\x04datacos\nsystem\nU\x04true\x85Rs.")
    assert _sentence(tmp_path, Cifar100) == (
        f"Expected {path} to be a pickle of plain dicts, lists, numbers, text and uint8 arrays. "
        "Got the global 'os.system', which could run code, at byte 9."
    )


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ([1], "Expected {path} to hold a dict. Got a list."),
        (
            {"fine_labels": None},
            "Expected {path} to be of CIFAR-10, with the key 'labels'. "
            "Got batch_label, data, filenames.",
        ),
        (
            {"data": np.zeros((TRAIN, 3071), np.uint8)},
            "Expected 'data' in {path} to be an array of shape (6, 3072). Got (6, 3071).",
        ),
        (
            {"data": np.zeros((TRAIN - 1, 3072), np.uint8)},
            "Expected 'data' in {path} to be an array of shape (6, 3072). Got (5, 3072).",
        ),
        ({"data": [1]}, "Expected 'data' in {path} to be an array of shape (6, 3072). Got a list."),
        ({"labels": [1] * 5}, "Expected 'labels' in {path} to hold 6 labels. Got 5."),
        (
            {"labels": ["a"] * 6},
            "Expected 'labels' in {path} to be a list of whole numbers. Got something else.",
        ),
        (
            {"labels": [0] * 5 + [2**70]},
            f"Expected the labels in {{path}} to be in [0, 10). Got {2**70}.",
        ),
        ({"labels": [-1] * 6}, "Expected the labels in {path} to be in [0, 10). Got -1."),
    ],
)
def test_pickle_with_something_else(tmp_path: Path, change: Any, sentence: str):
    path = _write(tmp_path, Cifar10.release, "python 2") / "data_batch_1"
    content = change
    if isinstance(change, dict):
        content = _entries(Cifar10.release, "data_batch_1", TRAIN) | change
        if "fine_labels" in change:
            del content["labels"], content["fine_labels"]
    path.write_bytes(pickle.dumps(content, 2))
    assert _sentence(tmp_path) == sentence.format(path=path)


def test_padding_out_of_range():
    with pytest.raises(ValueError, match=r"Expected padding to be above 0\. Got 0\."):
        Cifar10(padding=0)


def test_registered():
    assert DATASETS["cifar10"] is Cifar10
    assert DATASETS["cifar100"] is Cifar100
