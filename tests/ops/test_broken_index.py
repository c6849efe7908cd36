"""An index that is out of range, unsorted, repeated or inconsistent: one sentence, never a crash.

In debug mode every layer op checks the index before it follows it. That mode is chosen when the
library is loaded, so a process of its own runs this file in it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from sparsekern._extension import native
from sparsekern.ops import OPS, bsr, csr
from tests.broken_index import HUGE, broken, ways

needs_native = pytest.mark.skipif(not native.loaded, reason="no native library")

ALL = ("crow", "col", "crow_t", "col_t", "perm")
FOLLOWED = {
    "csr_linear": ("crow", "col", "starts"),
    "csr_linear_backward": (*ALL, "starts", "starts_t"),
    "csr_conv2d": ("crow", "col"),
    "csr_conv2d_backward": ALL,
    "bsr_linear": ("crow", "col"),
    "bsr_linear_backward": ALL,
    "bsr_conv2d": ("crow", "col"),
    "bsr_conv2d_backward": ALL,
    "condensed_linear": ("col",),
}
BATCHES = (1, 5, 70)


def _mask(*shape: int) -> Tensor:
    kept = torch.rand(shape, generator=torch.Generator().manual_seed(0)) < 0.4
    kept.view(-1)[:2] = True  # two entries in the first row, and in the first column
    kept[1, 0] = True
    return kept


class Call:
    """A layer op on a right index, of which one tensor can be replaced."""

    def __init__(self, name: str, batch: int) -> None:
        family, kind = name.split("_")[:2]
        self.op = OPS[name].overload
        self.options: dict[str, Any] = {}
        block = (4, 8) if family == "bsr" else ()
        self.backward = name.endswith("_backward")
        if family == "condensed":
            self.index = {"col": torch.arange(40).view(8, 5).int() * 2}
            self.first = (torch.ones(batch, 90), torch.ones(40), None)
            self.last = (90,)
            return
        if kind == "linear":
            kept = _mask(40, 300)
            self.index = (csr if family == "csr" else bsr).index_from_mask(kept)._asdict()
            x = torch.ones(batch, 300 * (block[1] if block else 1))
            y = torch.ones(batch, 40 * (block[0] if block else 1))
        else:
            kept = _mask(12, 6 * 9) if family == "bsr" else _mask(12, 6, 3, 3)
            self.index = (csr if family == "csr" else bsr).index_from_mask(kept)._asdict()
            if family == "csr":
                del self.index["starts"], self.index["starts_t"]
            self.options = {"kernel_size": (3, 3), "padding": (1, 1)}
            x = torch.ones(batch, 6 * (block[1] if block else 1), 7, 9)
            y = torch.ones(batch, 12 * (block[0] if block else 1), 7, 9)
        values = torch.ones(int(kept.sum()), *block)
        self.last = ([True] * 3,) if self.backward else ()
        self.first = (y, x, values) if self.backward else (x, values, None, None)
        if name == "csr_linear_backward":
            self.first = (*self.first, None)  # no activation

    def __call__(self, **changed: Tensor) -> list[Tensor]:
        index = {**self.index, **changed}
        result = self.op(*self.first, *index.values(), *self.last, **self.options)
        return [result] if isinstance(result, Tensor) else list(result)


CASES = [
    pytest.param(op, name, way, id=f"{op}-{name}-{way}")
    for op, names in FOLLOWED.items()
    for name in names
    for way in ways(name)
    if native.debug
]


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize(("op", "name", "way"), CASES)
def test_broken(op: str, name: str, way: str, batch: int) -> None:
    call = Call(op, batch)
    wrong = broken(call.index[name].flatten(), ways(name)[way]).view_as(call.index[name])
    with pytest.raises(RuntimeError, match=r"^Expected [^.]*\. Got [^.]*\.$"):
        call(**{name: wrong})


@pytest.mark.parametrize("op", FOLLOWED if native.debug else [])
def test_right(op: str) -> None:
    """The checks find nothing, and no scratch is read before it is written: that would be NaN."""
    for batch in BATCHES:
        assert all(result.isfinite().all() for result in Call(op, batch)())


@pytest.mark.parametrize("op", FOLLOWED if native.debug else [])
def test_anything_anywhere(op: str) -> None:
    """A sentence, or numbers where the change is another right index (of a forward pass)."""
    generator = torch.Generator().manual_seed(0)
    call = Call(op, 5)
    refused = 0
    for _ in range(300):
        name = FOLLOWED[op][int(torch.randint(len(FOLLOWED[op]), (), generator=generator))]
        wrong = call.index[name].clone().flatten()
        at = torch.randint(wrong.numel(), (), generator=generator)
        step = int(torch.randint(-3, 4, (), generator=generator))
        wrong[at] = (int(wrong[at]) + step, -HUGE - 1, HUGE, int(wrong[-1]), step)[abs(step)]
        wrong = wrong.view_as(call.index[name])
        outcome = _attempt(lambda changed={name: wrong}: call(**changed))
        if isinstance(outcome, str):
            assert outcome.startswith("Expected ")
            refused += 1
        else:
            assert all(result.isfinite().all() for result in outcome)
            assert not call.backward or torch.equal(wrong, call.index[name])
    assert refused > 100


def _attempt(run: Callable[[], Any]) -> Any:
    """What it returns, or the sentence it raises."""
    try:
        return run()
    except RuntimeError as error:
        return str(error)


def _rows(way: str, name: str) -> tuple[Tensor, Tensor]:
    index = csr.index_from_mask(_mask(40, 300))
    rows = {"crow": index.crow, "col": index.col}
    return tuple({**rows, name: broken(rows[name], ways(name)[way])}.values())


def _ways() -> Iterator[tuple[str, str]]:
    for name in ("crow", "col"):
        for way in ways(name):
            yield name, way


@needs_native
@pytest.mark.parametrize("taps", [None, 3])
@pytest.mark.parametrize(("name", "way"), list(_ways()))
def test_nothing_is_built_from_it(name: str, way: str, taps: int | None) -> None:
    """In every mode: all indices pass through here."""
    crow, col = _rows(way, name)
    with pytest.raises(RuntimeError, match=r"^Expected [^.]*\. Got [^.]*\.$"):
        csr.build_index(crow, col, 300, taps)
    with pytest.raises(RuntimeError, match=r"^Expected [^.]*\. Got [^.]*\.$"):
        bsr.build_index(crow, col, 300)


@needs_native
@pytest.mark.parametrize(("name", "way"), list(_ways()))
def test_what_reads_it_stays_inside(name: str, way: str) -> None:
    """In every mode: a sentence, or zeros for columns that are none."""
    crow, col = _rows(way, name)
    right = csr.index_from_mask(_mask(40, 300))
    values = torch.ones(col.numel())
    for run in (
        lambda: csr.to_dense(values, crow, col, 300),
        lambda: csr.gather(torch.ones(40, 300), crow, col),
        lambda: csr.position_map(crow, col, right.crow, right.col),
        lambda: csr.position_map(right.crow, right.col, crow, col),
        lambda: csr.move_(values.clone(), col),
    ):
        outcome = _attempt(run)
        assert not isinstance(outcome, str) or (name == "crow" and outcome.startswith("Expected "))


@pytest.mark.skipif(not native.loaded or native.debug, reason="for a process not in debug mode")
def test_in_debug_mode() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", __file__]
    environment = {**os.environ, "SPARSEKERN_DEBUG": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed, 1 skipped" in done.stdout  # this test


def test_the_switch() -> None:
    command = [sys.executable, "-c", "import sparsekern"]
    environment = {**os.environ, "SPARSEKERN_DEBUG": "yes"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert "Expected SPARSEKERN_DEBUG to be 0 or 1. Got 'yes'." in done.stderr
