"""Many tensors in one launch: a table of their addresses, and a map from programs to tensors.

Thread mapping: program i works on BLOCK consecutive elements of the tensor in row i of the map.
Tile: groups of eight elements, those of one byte of the mask, predicated together.
Accumulation: none here.
Alignment: vectors where all addresses of a tensor are multiples of 16, else single elements.
Contract: the table of a call is copied once, and kept while the addresses are the same.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparsekern.kernels.launch import INTERPRETING

# Columns of the table: 0 length, 1 mask, 2 weight, 3 gradient, 4 copy, then states.
# The interpreter pays for programs, not for elements.
BLOCK, WARPS = 8192 if INTERPRETING else 1024, 4
KEPT_TABLES = 32  # a step needs about two for each parameter group and combination of dtypes

TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


@triton.jit
def place(p_table, p_blocks, p_found_inf, FIELDS: tl.constexpr, BLOCK: tl.constexpr):
    """Row of this program's tensor, its first element and the tensor's length; the length is zero
    after an overflow, so that nothing is loaded or stored."""
    i_block = tl.program_id(0).to(tl.int64)
    i_tensor = tl.load(p_blocks + 2 * i_block)
    first = tl.load(p_blocks + 2 * i_block + 1).to(tl.int64) * BLOCK
    p_row = p_table + i_tensor.to(tl.int64) * FIELDS
    numel = tl.load(p_row)
    numel = tl.where(tl.load(p_found_inf) != 0, 0, numel)
    return p_row, i_tensor, first, numel


@triton.jit
def mask_bytes(p_row, first, numel, TAIL: tl.constexpr, BLOCK: tl.constexpr):
    """The mask of BLOCK elements from ``first`` on, eight in each of int32 [BLOCK / 8, 1], and the
    same of one without masked elements. Eight elements that are not all inside of the tensor
    count as outside; ``TAIL`` is for them alone.

    NOTE: one predicate for eight elements, or vectors would fall apart into single loads.
    """
    o_byte = tl.arange(0, BLOCK // 8)
    bits = tl.load(p_row + 1)
    p_byte = bits.to(tl.pointer_type(tl.uint8)) + first // 8 + o_byte
    m_byte = first + o_byte * 8 < tl.where(bits != 0, numel, 0)
    byte = tl.load(p_byte, mask=m_byte, other=255).to(tl.int32)
    if TAIL:
        full = (1 << (numel - first).to(tl.int32)) - 1 + o_byte * 0
    else:
        full = tl.where(first + o_byte * 8 + 8 <= numel, 255, 0)
    return (byte & full)[:, None], full[:, None]


@triton.jit
def popcount(byte):
    """How many of the lowest eight bits are set."""
    pairs = byte - ((byte >> 1) & 0x55)
    fours = (pairs & 0x33) + ((pairs >> 2) & 0x33)
    return (fours + (fours >> 4)) & 0x0F


@triton.jit
def compact_place(
    p_row, first, byte, RANK: tl.constexpr, RANK_BLOCK: tl.constexpr, TAIL: tl.constexpr
):
    """For elements from ``first`` on with the mask ``byte`` [n, 1]: how many kept ones of the
    tensor lie before all of them, and how many of those before each, int32 [n, 8]. Column RANK of
    the table has those before every RANK_BLOCK; ``first`` begins one, unless TAIL."""
    start = first // RANK_BLOCK
    before = tl.load(tl.load(p_row + RANK).to(tl.pointer_type(tl.int32)) + start)
    if TAIL:
        o_byte = start * (RANK_BLOCK // 8) + tl.arange(0, RANK_BLOCK // 8)
        p_byte = tl.load(p_row + 1).to(tl.pointer_type(tl.uint8)) + o_byte
        between = tl.load(p_byte, mask=o_byte * 8 < first, other=0).to(tl.int32)
        before += tl.sum(popcount(between), axis=0)
    count = popcount(byte)
    group = tl.cumsum(count, axis=0) - count
    below = byte & ((1 << tl.arange(0, 8)[None, :]) - 1)
    return before, group + popcount(below)


@triton.jit
def is_idle(p_row, first, numel, BLOCK: tl.constexpr):
    """Whether BLOCK elements are there and all masked. Every warp looks at all words of the mask:
    no shared memory."""
    bits = tl.load(p_row + 1)
    o_word = tl.arange(0, BLOCK // 32)
    m_word = first + o_word * 32 + 32 <= tl.where(bits != 0, numel, 0)
    p_word = bits.to(tl.pointer_type(tl.int32)) + first // 32
    words = tl.load(p_word + o_word, mask=m_word, other=-1)
    return tl.max((words != 0).to(tl.int32), axis=0) == 0


@triton.jit
def masked_block(
    p_row, first, clear, DTYPE: tl.constexpr, COPY_DTYPE: tl.constexpr, ALIGN: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """BLOCK masked weights: zero if ``clear``, else untouched; the copy gets what they are."""
    o = first + tl.arange(0, BLOCK)
    p_param = tl.multiple_of(tl.load(p_row + 2).to(tl.pointer_type(DTYPE)), ALIGN) + o
    if clear != 0:
        tl.store(p_param, tl.zeros((BLOCK,), DTYPE))
    if COPY_DTYPE is not None:
        p_copy = tl.multiple_of(tl.load(p_row + 4).to(tl.pointer_type(COPY_DTYPE)), ALIGN) + o
        m_old = o < tl.where(clear == 0, first + BLOCK, 0)
        tl.store(p_copy, tl.load(p_param, mask=m_old, other=0.0).to(COPY_DTYPE))


@dataclass(frozen=True)
class Group:
    """Tensors that one launch can take."""

    rows: list[int]  # which of the call's
    param: torch.dtype
    grad: torch.dtype
    copy: torch.dtype | None
    aligned: bool

    def types(self) -> dict[str, Any]:
        """The constants of a kernel that follow."""
        return {
            "DTYPE": TYPES[self.param],
            "GRAD_DTYPE": TYPES[self.grad],
            "COPY_DTYPE": None if self.copy is None else TYPES[self.copy],
            "ALIGN": 16 if self.aligned else 1,
        }


def cells(column: Sequence[Tensor] | Sequence[int], length: int) -> list[int]:
    """A column of the table: addresses, which are 0 for empty tensors, or numbers; zeros for an
    empty list."""
    if len(column) == 0:
        return [0] * length
    return [each.data_ptr() if isinstance(each, Tensor) else int(each) for each in column]


def groups(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    copies: Sequence[Tensor],
    addresses: Sequence[Sequence[int]],
) -> list[Group]:
    """Tensors that have elements, by dtypes and by whether all of their addresses are aligned."""
    found: dict[tuple[torch.dtype, torch.dtype, torch.dtype | None, bool], list[int]] = {}
    rows = zip(params, grads, *addresses, strict=True)
    for i, (param, grad, *own) in enumerate(rows):
        if param.numel() == 0:
            continue
        any_bit = 0
        for address in own:
            any_bit |= address
        copy = copies[i].dtype if len(copies) > 0 and copies[i].numel() > 0 else None
        found.setdefault((param.dtype, grad.dtype, copy, any_bit % 16 == 0), []).append(i)
    return [Group(rows, *key) for key, rows in found.items()]


def address_table(
    rows: Sequence[int], tensors: Sequence[Tensor], columns: Sequence[Sequence[int]]
) -> Tensor:
    """int64 ``[rows, 1 + columns]``: lengths of ``tensors``, then the columns."""
    values = tuple((tensors[i].numel(), *(each[i] for each in columns)) for i in rows)
    return kept_on_device(
        ("table", values),
        tensors[rows[0]].device,
        lambda: torch.tensor(values, dtype=torch.int64),
    )


def block_map(rows: Sequence[int], tensors: Sequence[Tensor], block: int = BLOCK) -> Tensor:
    """int32 ``[blocks, 2]``: the row of each block's tensor, and which of its blocks it is."""
    counts = tuple((tensors[i].numel() + block - 1) // block for i in rows)

    def build() -> Tensor:
        many = torch.tensor(counts)
        tensor = torch.repeat_interleave(torch.arange(len(counts)), many)
        first = torch.repeat_interleave(many.cumsum(0) - many, many)
        return torch.stack([tensor, torch.arange(len(tensor)) - first], 1).to(torch.int32)

    return kept_on_device(("blocks", counts), tensors[rows[0]].device, build)


def number(value: Tensor | None, default: float, device: torch.device) -> Tensor:
    """A number of the call, or the default, on the device: kernels need no variant without it."""
    if value is not None:
        return value
    return kept_on_device(("number", default), device, lambda: torch.tensor([default]))


def times_on_device(steps: Sequence[Tensor], device: torch.device) -> Tensor | None:
    """float64 ``[steps]`` on the device; None if the steps are there already."""
    if steps[0].device == device:
        return None
    pinned = torch.empty(len(steps), dtype=torch.float64, pin_memory=True)
    torch.stack([step.reshape(()).double() for step in steps], out=pinned)
    times = pinned.to(device, non_blocking=True)
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        _captured.append((pinned, times))  # replays copy from there
    return times


def split(value: float) -> tuple[float, float]:
    """A double as the sum of two floats, which is how a kernel can be given it."""
    high = torch.tensor(value, dtype=torch.float64).float().item()
    return high, value - high


# What was copied to a device, with the pinned memory it came from, by stream and content.
_kept: OrderedDict[Hashable, tuple[Tensor, Tensor]] = OrderedDict()
# What CUDA graphs have captured: they read it in every replay, so it is never freed.
_captured: list[tuple[Tensor, Tensor]] = []
# Pinned memory for a capture, which should not allocate any, by number of bytes.
_spare: dict[int, Tensor] = {}


def kept_on_device(key: Hashable, device: torch.device, build: Callable[[], Tensor]) -> Tensor:
    """The built tensor on the device, copied there without a synchronisation unless it is there.

    NOTE: a copy that is captured happens in every replay. Its target is memory of the graph, which
    holds nothing before the first one, so nobody else may have it.
    """
    if device.type != "cuda":
        return _remember((device, key), lambda: (build(),) * 2)[1]
    full = (device, torch.cuda.current_stream(device).cuda_stream, key)
    if not torch.cuda.is_current_stream_capturing():
        return _remember(full, lambda: _copy(build(), device, keep_spare=True))[1]
    entry = _kept.get(full)
    if entry is None:
        entry = _copy(build(), device, keep_spare=False)
    _captured.append(entry)
    return entry[1]


def _remember(key: Hashable, make: Callable[[], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    # Another thread may take any of them out meanwhile.
    entry = _kept.pop(key, None) or make()
    _kept[key] = entry
    if len(_kept) > KEPT_TABLES:
        _kept.popitem(last=False)
    return entry


def _copy(built: Tensor, device: torch.device, keep_spare: bool) -> tuple[Tensor, Tensor]:
    spare = None if keep_spare else _spare.pop(built.nbytes, None)
    if spare is None:
        spare = torch.empty(built.nbytes, dtype=torch.uint8, pin_memory=True)
    if keep_spare and built.nbytes not in _spare:
        _spare[built.nbytes] = torch.empty(built.nbytes, dtype=torch.uint8, pin_memory=True)
    pinned = spare.view(built.dtype).view(built.shape).copy_(built)
    return pinned, pinned.to(device, non_blocking=True)
