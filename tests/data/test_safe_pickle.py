"""Pickles are read and never run."""

from __future__ import annotations

import base64
import os
import pickle
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparsekern.data.safe_pickle import read_pickle

# cPickle.dumps({...}, 2) of Python 2.7.18 with numpy 1.16.6: the opcodes of the official files.
PYTHON_2 = base64.b64decode(
    "gAJ9cQEoVQRkYXRhcQJjbnVtcHkuY29yZS5tdWx0aWFycmF5Cl9yZWNvbnN0cnVjdApxA2NudW1weQpuZGFycmF5Cn"
    "EESwCFVQFih1JxBShLAUsESwOGY251bXB5CmR0eXBlCnEGVQJ1MUsASwGHUnEHKEsDVQF8Tk5OSv////9K/////0sA"
    "dGKJVQwAAQIDBAUGBwgJCgt0YlUGbGFiZWxzcQhdcQkoSwNLyEpwEQEASwhlVQtiYXRjaF9sYWJlbHEKVRR0ZXN0aW"
    "5nIGJhdGNoIDEgb2YgMXELVQlmaWxlbmFtZXNxDF1xDShVBWEucG5ncQ5VBWIucG5ncQ9oDmV1Lg=="
)


def _read(tmp_path: Path, content: bytes) -> Any:
    path = tmp_path / "file"
    path.write_bytes(content)
    return read_pickle(path)


def _refusal(tmp_path: Path, content: bytes) -> str:
    with pytest.raises(ValueError) as error:
        _read(tmp_path, content)
    sentence = str(error.value)
    assert sentence.startswith(f"Expected {tmp_path / 'file'} to be a")
    return sentence


def test_file_of_python_2(tmp_path: Path):
    content = _read(tmp_path, PYTHON_2)
    data = content.pop(b"data")
    assert data.dtype == np.uint8
    assert data.tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]]
    assert content == {
        b"labels": [3, 200, 70000, 8],
        b"batch_label": b"testing batch 1 of 1",
        b"filenames": [b"a.png", b"b.png", b"a.png"],
    }


@pytest.mark.parametrize("protocol", [2, 3, 4])
@pytest.mark.parametrize("order", ["C", "F"])
def test_file_of_python_3(tmp_path: Path, protocol: int, order: Any):
    array = np.arange(300, dtype=np.uint8).reshape(100, 3)
    content = {
        "data": np.array(array, order=order),
        b"labels": [*range(-3, 300), 2**40],
        "more": (None, True, False, (), {"a": [array, "text", b"bytes"]}),
    }
    read = _read(tmp_path, pickle.dumps(content, protocol))
    assert np.array_equal(read["data"], array)
    assert read[b"labels"] == content[b"labels"]
    more = read["more"]
    assert more[:4] == (None, True, False, ())
    assert np.array_equal(more[4]["a"][0], array)
    assert more[4]["a"][1:] == ["text", b"bytes"]


class Harmful:
    """Leaves a folder behind when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("protocol", [2, 4])
def test_nothing_is_executed(tmp_path: Path, protocol: int):
    folder = tmp_path / "made"
    content = pickle.dumps({"data": Harmful(folder)}, protocol)
    sentence = _refusal(tmp_path, content)
    assert (
        f"Got the global '{os.mkdir.__module__}.mkdir', which could run code, at byte" in sentence
    )
    assert not folder.exists()
    pickle.loads(content)
    assert folder.exists(), "the file of this test does no harm"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (
            b"cbuiltins\neval\n(S'1'\ntR.",
            "Got the global 'builtins.eval', which could run code, at",
        ),
        (b"cnumpy\nload\n.", "Got the global 'numpy.load', which could run code, at byte 0."),
        (b"(ios\nsystem\n.", "Got the opcode INST at byte 1."),
        (b"\x80\x02(U\x02lscos\nsystem\no.", "Got the global 'os.system'"),
        (b"\x80\x02(NNo.", "Got the opcode OBJ at byte 5."),
        (b"\x80\x02N)\x81.", "Got the opcode NEWOBJ at byte 4."),
        (b"\x80\x02U\x011Q.", "Got the opcode BINPERSID at byte 5."),
        (b"\x80\x02\x82\x01.", "Got the opcode EXT1 at byte 2."),
        (b"\x80\x05N.", "Got protocol 5 at byte 0."),
        (pickle.dumps({"data": 1.5}, 2), "Got the opcode BINFLOAT at byte"),
        (pickle.dumps(np.zeros(3, np.float32), 2), "Got an array of dtype 'f4' at byte"),
        (pickle.dumps(np.zeros(3, np.int64), 4), "Got an array of dtype 'i8' at byte"),
    ],
)
def test_what_is_not_plain_data(tmp_path: Path, content: bytes, sentence: str):
    assert sentence in _refusal(tmp_path, content)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "to be a whole pickle file. Got: pickle exhausted before seeing STOP."),
        (b"\x80\x02}", "to be a whole pickle file. Got: pickle exhausted before seeing STOP."),
        (b"\x80\x02T\xff\xff\x00\x00abc", "to be a whole pickle file. Got: expected 65535 bytes"),
        (b"PK\x03\x04\n", "Got the opcode PERSID at byte 0."),
        (
            b"\x1f\x8b\x08",
            "to be a whole pickle file. Got: at position 0, opcode b'\\x1f' unknown.",
        ),
        (b"\x80\x02.", "Got a damaged file: the opcode STOP at byte 2 does not fit"),
        (b"\x80\x02NN.", "Got a damaged file: the opcode STOP at byte 4 does not fit"),
        (b"\x80\x02h\x07.", "Got a damaged file: the opcode BINGET at byte 2 does not fit"),
        (b"\x80\x02]K\x01K\x02s.", "Got a damaged file: the opcode SETITEM at byte 7 does not fit"),
        (b"\x80\x02}]K\x02s.", "Got a damaged file: the opcode SETITEM at byte 6 does not fit"),
        (b"\x80\x02}K\x01a.", "Got a damaged file: the opcode APPEND at byte 5 does not fit"),
        (b"\x80\x02(\x85.", "Got a damaged file: the opcode TUPLE1 at byte 3 does not fit"),
        (b"\x80\x02NNR.", "Got a damaged file: the opcode REDUCE at byte 4 does not fit"),
        (b"\x80\x02NNb.", "Got a damaged file: the opcode BUILD at byte 4 does not fit"),
        (b"\x80\x02cnumpy\nndarray\n.", "Got a damaged file: the opcode STOP at byte"),
    ],
)
def test_damaged(tmp_path: Path, content: bytes, sentence: str):
    assert sentence in _refusal(tmp_path, content)


def test_array_of_another_size_than_its_bytes(tmp_path: Path):
    content = PYTHON_2.replace(b"K\x04K\x03\x86", b"K\x04K\x04\x86")
    assert "Got a damaged file: the opcode BUILD" in _refusal(tmp_path, content)


def test_containers_without_end(tmp_path: Path):
    """A list in itself, and lists that double forty times, are read in no time."""
    assert _read(tmp_path, b"\x80\x02]q\x00h\x00a.")[0] is not None
    doubled = b"".join(
        b"]q%ch%cah%ca" % (i + 1, i, i)
        for i in range(40)  # twice the one before
    )
    lists = _read(tmp_path, b"\x80\x02(]q\x00" + doubled + b"t.")
    assert len(lists) == 41
    assert lists[40][1] is lists[39]


def test_any_damage_is_a_sentence(tmp_path: Path):
    """Random changes of a real file are read, or refused with a sentence."""
    random.seed(0)
    sentences = []
    for _ in range(1500):
        content = bytearray(PYTHON_2)
        for _ in range(random.choice([1, 1, 2, 5])):
            content[random.randrange(len(content))] = random.randrange(256)
        try:
            _read(tmp_path, bytes(content[: random.choice([None, None, 100])]))
        except ValueError as error:
            sentences.append(str(error))
    assert len(sentences) > 500
    assert all(sentence.startswith("Expected ") for sentence in sentences)


def test_missing_file(tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        read_pickle(tmp_path / "none")
