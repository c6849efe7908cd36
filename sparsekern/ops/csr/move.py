"""``csr_move_``: per-weight state follows a change of topology."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from sparsekern._checks import check_shape, check_tensor
from sparsekern.kernels.launch import Launcher
from sparsekern.ops._define import Cost, Sample, define_op
from sparsekern.ops.csr._checks import check_index


def _reference(state: Tensor, positions: Tensor) -> None:
    if state.numel() == 0:
        return
    moved = state.index_select(0, positions.clamp(min=0))
    state.copy_(torch.where(positions >= 0, moved, moved.new_zeros(())))


def _check(state: Tensor, positions: Tensor) -> None:
    check_tensor(state, "state", ndim=1)
    check_tensor(positions, "positions", ndim=1)
    check_index("positions", positions, None, state.device, "state")
    check_shape(positions, "positions", tuple(state.shape))
    if not state.is_contiguous():
        raise ValueError(f"Expected state to be contiguous. Got strides {state.stride()}.")
    if state.element_size() > 8:
        raise TypeError(f"Expected state to have elements of at most 8 bytes. Got {state.dtype}.")


def _samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    generator = torch.Generator().manual_seed(0)
    for numel in (0, 1, 7, 1000, 150_000):
        state = torch.randn(numel, generator=generator).to(device, dtype)
        positions = torch.randint(-1, max(numel, 1), (numel,), generator=generator)
        positions = positions.sort()[0].to(device, torch.int32)
        yield Sample((state, positions), f"numel_{numel}", small=numel < 10)
    state = torch.tensor([float("nan"), float("inf"), 1.0, -0.0], device=device, dtype=dtype)
    shuffled = torch.tensor([3, -1, 0, 0], device=device, dtype=torch.int32)
    yield Sample((state, shuffled), "not_finite", small=True)
    nothing = torch.full_like(shuffled, -1)
    yield Sample((state, nothing), "all_grown", small=True)


def _errors() -> Iterator[tuple[tuple[Any, ...], type[Exception], str]]:
    state, positions = torch.zeros(3), torch.zeros(3, dtype=torch.int32)
    yield (state, positions.long()), TypeError, "Expected positions to have dtype torch.int32"
    yield (state, positions[:2]), ValueError, "Expected positions to have shape (3,). Got (2,)"
    yield (state[None], positions), ValueError, "Expected state to have 1 dimensions"
    yield (torch.zeros(6)[::2], positions), ValueError, "Expected state to be contiguous"
    wide = torch.zeros(3, dtype=torch.complex128)
    yield (wide, positions), TypeError, "Expected state to have elements of at most 8 bytes"


move_op = define_op(
    "csr_move_(Tensor(a!) state, Tensor positions) -> ()",
    reference=_reference,
    check=_check,
    fake=lambda state, positions: None,
    setup=None,
    backward="it works in place, on weights and optimiser state outside of the graph.",
    samples=_samples,
    errors=_errors,
    cost=lambda state, positions: Cost(0, state.nbytes + positions.nbytes, state.nbytes),
    triton=Launcher("csr.move", "move"),
)


def move_(state: Tensor, positions: Tensor) -> None:
    """``state[j] = state[positions[j]]`` in place, zero where ``positions[j]`` is -1.

    Args:
        state: ``[nnz]``, contiguous, any dtype of at most 8 bytes.
        positions: ``[nnz]`` int32 in [-1, nnz), from :func:`rebuild_`.

    Raises:
        TypeError, ValueError: shapes, dtypes or devices that do not fit.

    Gradients: none. Deterministic, for any number of threads. Cost: two reads and two writes of the
    state.
    """
    move_op(state, positions)
