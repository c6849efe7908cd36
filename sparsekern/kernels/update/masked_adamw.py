"""AdamW on the kept weights of many tensors; its 28 bytes a float32 weight are what takes time.

Thread mapping: one program a BLOCK of one tensor; all tensors of the same dtypes in one launch.
Tile: groups of eight weights, 32 bytes in float32; without a kept weight they are not touched.
Accumulation: float32; rate and bias corrections in float64, once a tensor, in a small launch.
Alignment: 16 bytes for vectors, see table.py; 64-bit offsets.
Contract: sparsekern/ops/update/masked_adamw.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

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
    compact_place,
    groups,
    is_idle,
    mask_bytes,
    masked_block,
    number,
    place,
    split,
    times_on_device,
)

ROWS = 128  # tensors of one program of the first launch


@triton.jit(do_not_specialize=["count"])
def constants_kernel(
    p_table, p_times, p_rate, p_constants, count,
    lr, lr_rest, decay, decay_rest, log_beta1, log_beta1_rest, log_beta2, log_beta2_rest,
    STEP: tl.constexpr, FIELDS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """decay, step size and root factor of each tensor, float32 [count, 3]."""
    o_row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    m_row = o_row < count
    if p_times is not None:
        time = tl.load(p_times + o_row, mask=m_row, other=1.0).to(tl.float64)
    else:
        steps = tl.load(p_table + o_row * FIELDS + FIELDS - 1, mask=m_row, other=0)
        time = tl.load(steps.to(tl.pointer_type(STEP)), mask=m_row, other=1.0).to(tl.float64)
    zero = tl.zeros((ROWS,), tl.float64)
    rate = zero + lr + lr_rest
    if p_rate is not None:
        rate = zero + tl.load(p_rate).to(tl.float64)
    power1 = tl.exp2(time * (zero + log_beta1 + log_beta1_rest))
    power2 = tl.exp2(time * (zero + log_beta2 + log_beta2_rest))
    step_size = rate / (1.0 - power1)
    root_factor = 1.0 / tl.sqrt(1.0 - power2)
    kept = 1.0 - rate * (zero + decay + decay_rest)
    tl.store(p_constants + 3 * o_row, kept.to(tl.float32), mask=m_row)
    tl.store(p_constants + 3 * o_row + 1, step_size.to(tl.float32), mask=m_row)
    tl.store(p_constants + 3 * o_row + 2, root_factor.to(tl.float32), mask=m_row)


@triton.jit
def adamw_part(
    p_row, first, numel, factor, decay, step_size, root_factor,
    beta1, beta2, grad_weight, square_weight, eps, l2, has_l2, clear,
    RANK_BLOCK: tl.constexpr,
    DTYPE: tl.constexpr, GRAD_DTYPE: tl.constexpr, COPY_DTYPE: tl.constexpr,
    ALIGN: tl.constexpr, TAIL: tl.constexpr, BLOCK: tl.constexpr,
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
    p_first = tl.multiple_of(tl.load(p_row + 5).to(tl.pointer_type(tl.float32)), ALIGN)
    p_second = tl.multiple_of(tl.load(p_row + 6).to(tl.pointer_type(tl.float32)), ALIGN)
    if RANK_BLOCK is None:
        p_first, p_second, m_state = p_first + o, p_second + o, some
    else:  # states hold kept weights alone: columns 7 ranks, 8 their number
        before, o_state = compact_place(p_row, first, byte, 7, RANK_BLOCK, TAIL)
        p_first, p_second = p_first + before + o_state, p_second + before + o_state
        m_state = kept & (o_state < tl.load(p_row + 8) - before)
    b_old = tl.load(p_param, mask=m_old, other=0.0)
    b_grad = tl.load(p_grad, mask=some, other=0.0).to(tl.float32) * factor
    b_first = tl.load(p_first, mask=m_state, other=0.0)
    b_second = tl.load(p_second, mask=m_state, other=0.0)
    weight = b_old.to(tl.float32)
    b_grad = tl.where(has_l2 != 0, b_grad + l2 * weight, b_grad)
    moved = b_first * beta1 + b_grad * grad_weight
    square = b_second * beta2 + b_grad * b_grad * square_weight
    # NOTE: tl.sqrt would be approximate and flush subnormal numbers to zero, as would "/".
    root = tl.sqrt_rn(square) * root_factor + eps
    weight = weight * decay - tl.div_rn(step_size * moved, root)
    # Masked weights are written back in their own bits, whatever they are.
    masked = tl.where(clear != 0, tl.zeros_like(b_old), b_old)
    new = tl.where(kept, weight.to(DTYPE), masked)
    tl.store(p_param, new, mask=written)
    tl.store(p_first, tl.where(kept, moved, b_first), mask=m_state)
    tl.store(p_second, tl.where(kept, square, b_second), mask=m_state)
    if COPY_DTYPE is not None:
        p_copy = tl.multiple_of(tl.load(p_row + 4).to(tl.pointer_type(COPY_DTYPE)), ALIGN) + o
        tl.store(p_copy, new.to(COPY_DTYPE), mask=inside)


@triton.jit(do_not_specialize=["has_l2", "clear"])
def adamw_kernel(
    p_table, p_blocks, p_constants, p_factor, p_found_inf,
    sign, beta1, beta2, grad_weight, square_weight, eps, l2, has_l2, clear,
    RANK_BLOCK: tl.constexpr,
    DTYPE: tl.constexpr, GRAD_DTYPE: tl.constexpr, COPY_DTYPE: tl.constexpr,
    ALIGN: tl.constexpr, FIELDS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    p_row, i_tensor, first, numel = place(p_table, p_blocks, p_found_inf, FIELDS, BLOCK)
    factor = tl.load(p_factor).to(tl.float32) * sign
    decay = tl.load(p_constants + 3 * i_tensor)
    step_size = tl.load(p_constants + 3 * i_tensor + 1)
    root_factor = tl.load(p_constants + 3 * i_tensor + 2)
    idle = False
    if ALIGN > 1:
        idle = is_idle(p_row, first, numel, BLOCK)
    if idle:
        masked_block(p_row, first, clear, DTYPE, COPY_DTYPE, ALIGN, BLOCK)
    else:
        adamw_part(
            p_row, first, numel, factor, decay, step_size, root_factor,
            beta1, beta2, grad_weight, square_weight, eps, l2, has_l2, clear,
            RANK_BLOCK, DTYPE, GRAD_DTYPE, COPY_DTYPE, ALIGN, False, BLOCK,
        )  # fmt: skip
        rest = numel // 8 * 8
        if (first <= rest) & (rest < numel) & (rest < first + BLOCK):
            adamw_part(
                p_row, rest, numel, factor, decay, step_size, root_factor,
                beta1, beta2, grad_weight, square_weight, eps, l2, has_l2, clear,
                RANK_BLOCK, DTYPE, GRAD_DTYPE, COPY_DTYPE, ALIGN, True, 8,
            )  # fmt: skip


Tensors = Sequence[Tensor]


def masked_adamw(
    params: Tensors,
    grads: Tensors,
    exp_avgs: Tensors,
    exp_avg_sqs: Tensors,
    steps: Tensors,
    bits: Tensors,
    *more: Any,
    **options: Any,
) -> None:
    """Launches ``update_masked_adamw_``: two kernels for each combination of dtypes."""
    columns = (bits, params, grads, more[0], exp_avgs, exp_avg_sqs)
    launch_adamw(columns, steps, None, more[1:], **options)


def launch_adamw(
    columns: Sequence[Sequence[Any]],
    steps: Tensors,
    rank_block: int | None,
    numbers: Sequence[Tensor | None],
    *,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decoupled: bool,
    maximize: bool,
    zero_masked: bool,
) -> None:
    """Launches the kernels over the columns of the table; ``numbers`` are ``grad_factor``,
    ``found_inf`` and ``rate``."""
    _, params, grads, copies = columns[:4]
    addresses = [cells(each, len(params)) for each in (*columns, steps)]
    for group in groups(params, grads, copies, addresses[:6]):
        rows, device = group.rows, params[group.rows[0]].device
        table = address_table(rows, params, addresses)
        times = times_on_device([steps[i] for i in rows], device)
        constants = torch.empty(len(rows), 3, device=device)
        launch(
            constants_kernel,
            (triton.cdiv(len(rows), ROWS),),
            *(table, times, numbers[2], constants, len(rows)),
            *split(lr),
            *split(weight_decay if decoupled else 0.0),
            *split(log2(beta1)),
            *split(log2(beta2)),
            STEP=STEP_TYPES[steps[rows[0]].dtype],
            FIELDS=table.shape[1],
            ROWS=ROWS,
        )
        blocks = block_map(rows, params)
        launch(
            adamw_kernel,
            (len(blocks),),
            *(table, blocks, constants),
            number(numbers[0], 1.0, device),
            number(numbers[1], 0.0, device),
            *(-1.0 if maximize else 1.0, beta1, beta2, 1 - beta1, 1 - beta2, eps),
            *(weight_decay, int(not decoupled and weight_decay != 0), int(zero_masked)),
            warps=WARPS,
            RANK_BLOCK=rank_block,
            **group.types(),
            FIELDS=table.shape[1],
            BLOCK=BLOCK,
        )


STEP_TYPES = {torch.float32: tl.float32, torch.float64: tl.float64}


def log2(beta: float) -> float:
    """Finite, so that the power zero is one also for zero."""
    return math.log2(beta) if beta > 0 else -1e30
