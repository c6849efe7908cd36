"""``update_masked_norm``: the length of the kept gradients of many tensors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from sparsekern._checks import check_device
from sparsekern.kernels.launch import Launcher
from sparsekern.ops._define import Cost, Sample, define_op
from sparsekern.ops.update._checks import check_masked, check_scalar, kept, scaled, why_no_kernel
from sparsekern.ops.update._samples import SMALL, all_lists, lists

Tensors = Sequence[Tensor]


def _dtype(grads: Tensors) -> torch.dtype:
    double = any(each.dtype == torch.float64 for each in grads)
    return torch.float64 if double else torch.float32


def _device(grads: Tensors) -> torch.device:
    return grads[0].device if grads else torch.device("cpu")


def _reference(grads: Tensors, bits: Tensors, grad_factor: Tensor | None) -> Tensor:
    squares = [
        torch.where(kept(mask, grad), scaled(grad, _dtype(grads), grad_factor, False), 0)
        .square()
        .sum()
        for grad, mask in zip(grads, bits, strict=True)
    ]
    if not squares:
        return torch.zeros((), dtype=_dtype(grads))
    return torch.stack(squares).sum().sqrt()


def _check(grads: Tensors, bits: Tensors, grad_factor: Tensor | None) -> None:
    check_masked(grads, "grads", bits)
    if grad_factor is not None:
        check_scalar(grad_factor, "grad_factor")
        if len(grads) > 0:
            check_device(grad_factor, "grad_factor", grads[0].device, "grads[0]")


def _fake(grads: Tensors, bits: Tensors, grad_factor: Tensor | None) -> Tensor:
    return torch.empty((), dtype=_dtype(grads), device=_device(grads))


def _samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    for name, made in all_lists(device, dtype):
        yield Sample((made.grads, made.bits, None), name, small=name in SMALL)
    made = lists("typical", device, dtype)
    masked = torch.zeros(made.bits[0].shape, dtype=torch.uint8, device=device)
    odd = torch.full_like(made.grads[0], float("nan"))
    yield Sample(([odd, made.grads[1]], [masked, made.bits[1]], None), "masked_nan", small=True)
    yield Sample(([odd, made.grads[1]], [made.bits[0], made.bits[1]], None), "kept_nan")
    # Squares of what a loss scale has made large are infinite in float32 unless it is undone first.
    factor = torch.tensor(2.0**-70, device=device)
    large = [
        (g.float() * 2.0**70).to(torch.bfloat16 if g.dtype == torch.float16 else g.dtype)
        for g in made.grads
    ]
    yield Sample((large, made.bits, factor), "factor", small=True)


def _errors() -> Iterator[tuple[Any, type[Exception], str]]:
    made = lists("tiny", torch.device("cpu"), torch.float32)
    yield (made.grads[0], made.bits, None), TypeError, "Expected grads to be a list of tensors"
    yield (
        ([g.long() for g in made.grads], made.bits, None),
        TypeError,
        "Expected grads[0] to have dtype",
    )
    yield (made.grads, made.bits[:1], None), ValueError, "Expected bits to have 2 entries. Got 1"
    yield (made.grads, made.grads, None), TypeError, "Expected bits[0] to have dtype torch.uint8"
    strided = [torch.zeros(2, 3).t(), made.grads[1]]
    yield (strided, made.bits, None), ValueError, "Expected grads[0] to be contiguous"
    half = torch.ones(1).half()
    yield (made.grads, made.bits, half), TypeError, "Expected grad_factor to have dtype"
    away = torch.ones(1, device="meta")
    yield (made.grads, made.bits, away), ValueError, "Expected grad_factor to be on cpu like gra"


def _cost(grads: Tensors, bits: Tensors, grad_factor: Tensor | None) -> Cost:
    numel = sum(each.numel() for each in grads)
    return Cost(2 * numel, sum(each.nbytes for each in (*grads, *bits)), 4)


def _limits(*args: Any, **options: Any) -> str | None:
    return why_no_kernel(args[0])


masked_norm_op = define_op(
    "update_masked_norm(Tensor[] grads, Tensor[] bits, Tensor? grad_factor) -> Tensor",
    reference=_reference,
    check=_check,
    fake=_fake,
    setup=None,
    backward="it measures gradients, which are outside of the graph.",
    samples=_samples,
    errors=_errors,
    cost=_cost,
    triton=Launcher("update.masked_norm", "masked_norm", _limits),
)


def masked_norm(grads: Tensors, bits: Tensors, grad_factor: Tensor | None = None) -> Tensor:
    """``sqrt(sum of (factor g)^2)`` over all elements of all tensors whose bit is 1, in one pass.

    Args:
        grads: tensors of any shape, contiguous, on one device; float32, float64, bfloat16 or
            float16, which may be mixed.
        bits: mask of each tensor, uint8 ``[ceil(numel / 8)]`` as :func:`mask.pack_bits` makes it;
            ``[0]`` where all elements count.
        grad_factor: one float32 or float64 that gradients are multiplied by, to undo a loss scale;
            None means 1.

    Returns:
        One number: float64 if any gradient is, else float32. What is masked has no say, a NaN
        neither. Infinite where a gradient, or its square, is, as torch's norm.

    Raises:
        TypeError, ValueError: lists, dtypes, lengths or devices that do not fit.

    Gradients: none. Deterministic, for any number of threads: sums are cut by the shapes and
    finished in float64. Cost: one read of the gradients and their masks; nothing is read for 64
    masked ones in a row.
    """
    return torch.as_tensor(masked_norm_op(grads, bits, grad_factor))
