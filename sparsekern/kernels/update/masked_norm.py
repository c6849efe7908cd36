"""The length of the kept gradients of many tensors; one read of them is what takes time.

Thread mapping: one program a CHUNK of one tensor; one more program adds up what they found.
Tile: BLOCK gradients in groups of eight; a group without a kept one is not read.
Accumulation: float32 for the 64 gradients of a lane, float64 in a fixed order from there on.
Alignment: 16 bytes for vectors, see table.py; 64-bit offsets.
Contract: sparsekern/ops/update/masked_norm.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparsekern.kernels.launch import launch
from sparsekern.kernels.update.table import (
    BLOCK,
    WARPS,
    address_table,
    block_map,
    cells,
    groups,
    mask_bytes,
    number,
)

CHUNK = 8 * BLOCK  # so that the last program has not many sums to add
SUMS = 1024


@triton.jit
def squares_kernel(
    p_table, p_blocks, p_factor, p_sums,
    DTYPE: tl.constexpr, ALIGN: tl.constexpr, FIELDS: tl.constexpr,
    CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    i_block = tl.program_id(0).to(tl.int64)
    p_row = p_table + tl.load(p_blocks + 2 * i_block).to(tl.int64) * FIELDS
    start = tl.load(p_blocks + 2 * i_block + 1).to(tl.int64) * CHUNK
    numel = tl.load(p_row)
    factor = tl.load(p_factor).to(tl.float32)
    p_grad = tl.multiple_of(tl.load(p_row + 2).to(tl.pointer_type(DTYPE)), ALIGN)
    o_bit = tl.arange(0, 8)[None, :]
    o_tile = tl.arange(0, BLOCK // 8)[:, None] * 8 + o_bit
    total = tl.zeros((BLOCK // 8, 8), tl.float32)
    for i in range(0, tl.minimum(tl.cdiv(numel - start, BLOCK), CHUNK // BLOCK)):
        first = start + i * BLOCK
        byte, _ = mask_bytes(p_row, first, numel, False, BLOCK)
        some = tl.broadcast_to(byte != 0, (BLOCK // 8, 8))
        b_grad = tl.load(p_grad + (first + o_tile), mask=some, other=0.0)
        b_grad = tl.where(((byte >> o_bit) & 1) != 0, b_grad.to(tl.float32) * factor, 0.0)
        total += b_grad * b_grad
    found = tl.sum(tl.sum(total, axis=1).to(tl.float64), axis=0)
    rest = numel // 8 * 8
    if (start <= rest) & (rest < numel) & (rest < start + CHUNK):
        byte, _ = mask_bytes(p_row, rest, numel, True, 8)
        kept = ((byte >> o_bit) & 1) != 0
        b_grad = tl.load(p_grad + rest + o_bit, mask=kept, other=0.0).to(tl.float32) * factor
        found += tl.sum(tl.sum(b_grad * b_grad, axis=1).to(tl.float64), axis=0)
    tl.store(p_sums + i_block + tl.arange(0, 1), tl.zeros((1,), tl.float64) + found)


@triton.jit(do_not_specialize=["count"])
def root_kernel(p_sums, p_norm, count, SUMS: tl.constexpr):
    o = tl.arange(0, SUMS)
    total = tl.zeros((SUMS,), tl.float64)
    for first in range(0, count, SUMS):
        total += tl.load(p_sums + first + o, mask=first + o < count, other=0.0)
    norm = tl.sqrt(tl.sum(total, axis=0))
    tl.store(p_norm + tl.arange(0, 1), (tl.zeros((1,), tl.float64) + norm).to(tl.float32))


def masked_norm(
    grads: Sequence[Tensor], bits: Sequence[Tensor], grad_factor: Tensor | None
) -> Tensor:
    """Launches ``update_masked_norm``: one kernel for each dtype, and one that adds up."""
    device = grads[0].device if grads else torch.device("cpu")
    norm = torch.empty((), device=device)
    addresses = [cells(each, len(grads)) for each in (bits, grads)]
    found = groups(grads, grads, [], addresses)
    maps = [block_map(group.rows, grads, CHUNK) for group in found]
    count = sum(map(len, maps))
    sums = torch.empty(count, dtype=torch.float64, device=device)
    first = 0
    for group, blocks in zip(found, maps, strict=True):
        table = address_table(group.rows, grads, addresses)
        launch(
            squares_kernel,
            (len(blocks),),
            *(table, blocks, number(grad_factor, 1.0, device), sums[first:]),
            warps=WARPS,
            DTYPE=group.types()["DTYPE"],
            ALIGN=group.types()["ALIGN"],
            FIELDS=table.shape[1],
            CHUNK=CHUNK,
            BLOCK=BLOCK,
        )
        first += len(blocks)
    launch(root_kernel, (1,), sums, norm, count, SUMS=SUMS)
    return norm
