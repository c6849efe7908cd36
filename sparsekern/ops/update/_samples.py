"""Lists of tensors the update ops are tested on, the ugly ones included."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sparsekern.ops.mask.bits import pack_bits
from sparsekern.ops.update._checks import state_dtype

# name -> (shape, density) of each tensor; None: no mask.
LISTS: dict[str, tuple[tuple[tuple[int, ...], float | None], ...]] = {
    "typical": (((40, 33), 0.3), ((40,), None), ((7, 5, 3, 3), 0.5)),
    "tiny": (((3, 2), 0.5), ((5,), None)),
    "nothing": (),
    "no_elements": (((0,), 0.5), ((0, 4), None), ((1,), 1.0)),
    "all_kept": (((65,), 1.0), ((129,), 1.0)),
    "all_masked": (((64,), 0.0), ((130,), 0.0), ((9001,), 0.0)),
    "empty_words": (((9, 500), 0.004),),
    "around_a_word": tuple(((size,), 0.5) for size in (63, 64, 65, 127, 128, 191)),
    # more than one task each: one tensor of several, and many tensors in several
    "one_large": (((70_001,), 0.2),),
    "many_small": tuple(((1000 + i, 7), (None, 0.1, 0.9)[i % 3]) for i in range(12)),
}
SMALL = ("typical", "tiny", "nothing", "no_elements")  # for opcheck


@dataclass(frozen=True)
class Lists:
    """Weights, gradients and two states of a step that is not the first, with their masks."""

    params: list[Tensor]
    grads: list[Tensor]
    moments: list[Tensor]
    squares: list[Tensor]
    bits: list[Tensor]


def lists(name: str, device: torch.device, dtype: torch.dtype) -> Lists:
    """One sample, the same numbers in every process."""
    generator = torch.Generator().manual_seed(sum(map(ord, name)))
    made = Lists([], [], [], [], [])
    for shape, density in LISTS[name]:
        values = torch.randn(4, *shape, generator=generator).to(device)
        made.params.append(values[0].to(dtype))
        made.grads.append(values[1].to(dtype))
        made.moments.append(values[2].to(state_dtype(dtype)))
        made.squares.append(values[3].square().to(state_dtype(dtype)))
        mask = torch.rand(shape, generator=generator) < (0 if density is None else density)
        bits = pack_bits(mask.to(device))
        made.bits.append(bits.new_empty(0) if density is None else bits)
    return made


def all_lists(device: torch.device, dtype: torch.dtype) -> Iterator[tuple[str, Lists]]:
    """Names and samples."""
    for name in LISTS:
        yield name, lists(name, device, dtype)


def with_copies(
    params: Sequence[Tensor], grads: Sequence[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """Gradients and copies in bfloat16, in float16, and float32 gradients without a copy."""
    kinds = (torch.bfloat16, torch.float16, None)
    some, copies = [], []
    for i, (param, grad) in enumerate(zip(params, grads, strict=True)):
        dtype = kinds[i % 3]
        some.append(grad if dtype is None else grad.to(dtype))
        copies.append(param.new_empty(0) if dtype is None else param.to(dtype).fill_(7))
    return some, copies


def shared_errors(
    first: int, params: Sequence[Tensor]
) -> Iterator[tuple[int, Any, type[Exception], str]]:
    """What is wrong with an argument of AdamW and SGD, and which, from ``copies`` on."""
    half = [p.half() for p in params]
    yield first, half[:1], ValueError, "Expected copies to have 2 entries. Got 1"
    yield first, half[::-1], ValueError, "Expected copies[0] to have shape (3, 2). Got (5,)"
    yield first, list(params), TypeError, "Expected copies[0] to have dtype torch.bfloat16 or"
    yield first, 5, TypeError, "Expected copies to be a list of tensors. Got int"
    yield first + 1, torch.ones(2), ValueError, "Expected grad_factor to have one element"
    yield first + 1, torch.ones(1).int(), TypeError, "Expected grad_factor to have dtype"
    meta = torch.ones(1, device="meta")
    yield first + 1, meta, ValueError, "Expected grad_factor to be on cpu like params[0]. Got meta"
    yield first + 2, torch.ones(1).double(), TypeError, "Expected found_inf to have dtype torch.fl"
    yield first + 3, 0.1, TypeError, "Expected rate to be a tensor. Got float"
