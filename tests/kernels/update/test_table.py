"""The host's half of the update kernels: tables of addresses, and how long they live."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="triton is not installed")
from sparsekern.kernels.update import table

CPU = torch.device("cpu")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A stand-in for a GPU: which stream is current, whether it captures, what was copied."""
    state = SimpleNamespace(capturing=False, stream=7, copies=0, device=torch.device("cuda", 0))
    for name, empty in (("_kept", type(table._kept)()), ("_captured", []), ("_spare", {})):
        monkeypatch.setattr(table, name, empty)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: state.capturing)
    stream = lambda device: SimpleNamespace(cuda_stream=state.stream)  # noqa: E731
    monkeypatch.setattr(torch.cuda, "current_stream", stream)
    pinned = torch.empty

    def empty(*args: int, pin_memory: bool = False, **kwargs: torch.dtype) -> Tensor:
        assert not (pin_memory and state.capturing), "pinned memory is allocated in a capture"
        return pinned(*args, **kwargs)

    def to_device(self: Tensor, device: torch.device, non_blocking: bool = False) -> Tensor:
        assert non_blocking
        state.copies += 1
        return self.clone()

    monkeypatch.setattr(torch, "empty", empty)
    monkeypatch.setattr(Tensor, "to", to_device)
    return state


def kept(gpu: SimpleNamespace, *values: int) -> Tensor:
    return table.kept_on_device(("test", values), gpu.device, lambda: torch.tensor(values))


def test_the_same_table_is_copied_once(gpu: SimpleNamespace) -> None:
    first = kept(gpu, 1, 2)
    assert first.tolist() == [1, 2]
    assert kept(gpu, 1, 2) is first
    assert gpu.copies == 1
    assert kept(gpu, 1, 3).tolist() == [1, 3]
    gpu.stream = 8  # another stream may not have seen the copy
    assert kept(gpu, 1, 2) is not first
    assert gpu.copies == 3


def test_only_the_last_tables_are_kept(gpu: SimpleNamespace) -> None:
    first, second = kept(gpu, 0), kept(gpu, 1)
    for value in range(2, table.KEPT_TABLES):
        kept(gpu, value)
    assert kept(gpu, 0) is first  # used last
    kept(gpu, 999)
    assert kept(gpu, 1) is not second
    assert kept(gpu, 0) is first
    assert len(table._kept) == table.KEPT_TABLES


def test_a_captured_table_lives_on_and_is_nobody_elses(gpu: SimpleNamespace) -> None:
    warm = kept(gpu, 1, 2)
    gpu.capturing = True
    assert kept(gpu, 1, 2) is warm
    inside = kept(gpu, 3, 4)  # pinned memory of that size was put aside
    assert inside.tolist() == [3, 4]
    assert [id(each) for _, each in table._captured] == [id(warm), id(inside)]
    gpu.capturing = False
    after = kept(gpu, 3, 4)
    assert after is not inside
    for value in range(2 * table.KEPT_TABLES):
        kept(gpu, value, value)
    assert table._captured[0][1] is warm


def test_groups_by_dtype_copy_and_alignment() -> None:
    base = torch.zeros(64)
    params = [base[4:20], base[5:21], base[:0], base[24:28], base[28:32]]
    grads = [torch.zeros(p.shape) for p in params]
    grads[3] = grads[3].bfloat16()
    none = torch.empty(0)
    copies = [none, none, none, none, torch.zeros(4).half()]
    addresses = [table.cells(each, 5) for each in (params, grads, copies, [])]
    found = table.groups(params, grads, copies, addresses)
    assert [(g.rows, g.aligned) for g in found] == [
        ([0], True),
        ([1], False),
        ([3], True),
        ([4], True),
    ]
    assert [(g.grad, g.copy) for g in found[2:]] == [
        (torch.bfloat16, None),
        (torch.float32, torch.float16),
    ]


def test_tables_and_maps_by_hand() -> None:
    tensors = [torch.zeros(3), torch.zeros(0), torch.zeros(2500)]
    columns = [table.cells(each, 3) for each in (tensors, [], [True, False, False])]
    made = table.address_table([0, 2], tensors, columns)
    assert made.tolist() == [
        [3, tensors[0].data_ptr(), 0, 1],
        [2500, tensors[2].data_ptr(), 0, 0],
    ]
    blocks = table.block_map([0, 2], tensors, 1000)
    assert blocks.tolist() == [[0, 0], [1, 0], [1, 1], [1, 2]]
    assert blocks.dtype == torch.int32


@pytest.mark.parametrize("value", [0.0, 0.1, 0.999, 1e-3, 123456.789, -1e30])
def test_a_double_in_two_floats(value: float) -> None:
    high, low = table.split(value)
    assert torch.tensor([high, low], dtype=torch.float64).float().tolist() == pytest.approx(
        [high, low], rel=1e-7
    )
    assert high == torch.tensor(high).item()
    assert high + low == pytest.approx(value, rel=1e-14)


def test_steps_that_are_there_are_not_copied() -> None:
    assert table.times_on_device([torch.ones(())], CPU) is None
