"""SGD on the kept weights of many tensors; 20 bytes a float32 weight, 12 without a momentum.

Thread mapping: one program a BLOCK of one tensor; all tensors of the same dtypes in one launch.
Tile: groups of eight weights, 32 bytes in float32; without a kept weight they are not touched.
Accumulation: float32.
Alignment: 16 bytes for vectors, see table.py; 64-bit offsets.
Contract: sparsekern/ops/update/masked_sgd.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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
    is_idle,
    mask_bytes,
    masked_block,
    number,
    place,
)

Tensors = Sequence[Tensor]


@triton.jit
def sgd_part(
    p_row, first, numel, factor, rate, momentum, grad_weight, l2, has_l2, nesterov, clear,
    MOMENTUM: tl.constexpr, DTYPE: tl.constexpr, GRAD_DTYPE: tl.constexpr,
    COPY_DTYPE: tl.constexpr, ALIGN: tl.constexpr, TAIL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    byte, full = mask_bytes(p_row, first, numel, TAIL, BLOCK)
    o_bit = tl.arange(0, 8)[None, :]
    o = first + (tl.arange(0, BLOCK // 8)[:, None] * 8 + o_bit)
    kept = ((byte >> o_bit) & 1) != 0
    inside = tl.broadcast_to(full != 0, (BLOCK // 8, 8))
    some = tl.broadcast_to(byte != 0, (BLOCK // 8, 8))
    written = tl.broadcast_to(tl.where(clear != 0, full, byte) != 0, (BLOCK // 8, 8))
    m_old = some
    if COPY_DTYPE is not None:  # which wants masked weights too, unless they become zero
        m_old = tl.broadcast_to(tl.where(clear == 0, full, byte) != 0, (BLOCK // 8, 8))
    if TAIL:
        inside = o < numel
        some, written, m_old = some & inside, written & inside, m_old & inside
    p_param = tl.multiple_of(tl.load(p_row + 2).to(tl.pointer_type(DTYPE)), ALIGN) + o
    p_grad = tl.multiple_of(tl.load(p_row + 3).to(tl.pointer_type(GRAD_DTYPE)), ALIGN) + o
    b_old = tl.load(p_param, mask=m_old, other=0.0)
    b_grad = tl.load(p_grad, mask=some, other=0.0).to(tl.float32) * factor
    weight = b_old.to(tl.float32)
    b_grad = tl.where(has_l2 != 0, b_grad + l2 * weight, b_grad)
    if MOMENTUM:
        p_buffer = tl.multiple_of(tl.load(p_row + 5).to(tl.pointer_type(tl.float32)), ALIGN) + o
        b_buffer = tl.load(p_buffer, mask=some, other=0.0)
        moved = b_buffer * momentum + b_grad * grad_weight
        moved = tl.where(tl.load(p_row + 6) != 0, b_grad, moved)
        tl.store(p_buffer, tl.where(kept, moved, b_buffer), mask=some)
        b_grad = tl.where(nesterov != 0, b_grad + momentum * moved, moved)
    weight = weight - rate * b_grad
    # Masked weights are written back in their own bits, whatever they are.
    masked = tl.where(clear != 0, tl.zeros_like(b_old), b_old)
    new = tl.where(kept, weight.to(DTYPE), masked)
    tl.store(p_param, new, mask=written)
    if COPY_DTYPE is not None:
        p_copy = tl.multiple_of(tl.load(p_row + 4).to(tl.pointer_type(COPY_DTYPE)), ALIGN) + o
        tl.store(p_copy, new.to(COPY_DTYPE), mask=inside)


@triton.jit(do_not_specialize=["has_l2", "nesterov", "clear"])
def sgd_kernel(
    p_table, p_blocks, p_factor, p_found_inf, p_rate,
    sign, lr, momentum, grad_weight, l2, has_l2, nesterov, clear,
    MOMENTUM: tl.constexpr, DTYPE: tl.constexpr, GRAD_DTYPE: tl.constexpr,
    COPY_DTYPE: tl.constexpr, ALIGN: tl.constexpr, FIELDS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    p_row, _, first, numel = place(p_table, p_blocks, p_found_inf, FIELDS, BLOCK)
    factor = tl.load(p_factor).to(tl.float32) * sign
    rate = factor * 0.0 + lr
    if p_rate is not None:
        rate = tl.load(p_rate).to(tl.float32)
    idle = False
    if ALIGN > 1:
        idle = is_idle(p_row, first, numel, BLOCK)
    if idle:
        masked_block(p_row, first, clear, DTYPE, COPY_DTYPE, ALIGN, BLOCK)
    else:
        sgd_part(
            p_row, first, numel, factor, rate, momentum, grad_weight, l2, has_l2, nesterov, clear,
            MOMENTUM, DTYPE, GRAD_DTYPE, COPY_DTYPE, ALIGN, False, BLOCK,
        )  # fmt: skip
        rest = numel // 8 * 8
        if (first <= rest) & (rest < numel) & (rest < first + BLOCK):
            sgd_part(
                p_row, rest, numel, factor, rate, momentum, grad_weight, l2, has_l2, nesterov,
                clear, MOMENTUM, DTYPE, GRAD_DTYPE, COPY_DTYPE, ALIGN, True, 8,
            )  # fmt: skip


def masked_sgd(
    params: Tensors,
    grads: Tensors,
    momentum_buffers: Tensors,
    starts: Sequence[bool],
    bits: Tensors,
    *more: Any,
    lr: float,
    momentum: float,
    dampening: float,
    weight_decay: float,
    nesterov: bool,
    maximize: bool,
    zero_masked: bool,
) -> None:
    """Launches ``update_masked_sgd_``: one kernel for each combination of dtypes."""
    copies, grad_factor, found_inf, rate = more
    columns = (bits, params, grads, copies, momentum_buffers, starts)
    addresses = [cells(each, len(params)) for each in columns]
    for group in groups(params, grads, copies, addresses[:5]):
        device = params[group.rows[0]].device
        table = address_table(group.rows, params, addresses)
        blocks = block_map(group.rows, params)
        launch(
            sgd_kernel,
            (len(blocks),),
            *(table, blocks),
            number(grad_factor, 1.0, device),
            number(found_inf, 0.0, device),
            *(rate, -1.0 if maximize else 1.0, lr, momentum, 1 - dampening, weight_decay),
            *(int(weight_decay != 0), int(nesterov), int(zero_masked)),
            warps=WARPS,
            MOMENTUM=momentum != 0,
            **group.types(),
            FIELDS=table.shape[1],
            BLOCK=BLOCK,
        )
