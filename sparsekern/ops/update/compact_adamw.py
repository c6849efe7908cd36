"""``update_compact_adamw_``: a step of AdamW whose states hold the kept weights alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from sparsekern._checks import check_device, check_dtype, check_shape
from sparsekern.kernels.launch import Launcher
from sparsekern.ops._define import Cost, Sample, define_op
from sparsekern.ops.mask.bits import pack_bits
from sparsekern.ops.update._checks import (
    check_copies,
    check_gradients,
    check_list,
    check_masked,
    check_scalar,
    check_scalars,
    copy_of,
    kept,
    scaled,
    state_dtype,
    why_no_kernel,
    write_reference,
)
from sparsekern.ops.update._samples import SMALL, lists, with_copies
from sparsekern.ops.update.masked_adamw import (
    NUMBERS,
    PLAIN,
    check_adamw_numbers,
    step_reference,
)

Tensors = Sequence[Tensor]
RANK_BLOCK = 512  # weights


def ranks_of_bits(bits: Tensor, numel: int) -> Tensor:
    """int32 ``[ceil(numel / 512)]``: how many kept weights lie before every 512.

    Args:
        bits: uint8 ``[ceil(numel / 8)]`` as :func:`mask.pack_bits` makes it.
        numel: of the weight; below 2^31 may be kept.

    Raises:
        TypeError, ValueError: bits of another dtype or length.

    Gradients: none. Deterministic. Cost: one pass over the bits, in plain torch; nothing waits for
    the device.
    """
    check_dtype(bits, "bits", (torch.uint8,))
    check_shape(bits, "bits", ((numel + 7) // 8,))
    shifts = torch.arange(8, dtype=torch.uint8, device=bits.device)
    counts = ((bits[:, None] >> shifts) & 1).sum(1, dtype=torch.int32)
    width = RANK_BLOCK // 8
    padded = torch.cat([counts, counts.new_zeros(-len(counts) % width)]).view(-1, width)
    blocks = padded.sum(1)
    return (blocks.cumsum(0) - blocks).to(torch.int32)


def _reference(
    params: Tensors,
    grads: Tensors,
    exp_avgs: Tensors,
    exp_avg_sqs: Tensors,
    steps: Tensors,
    bits: Tensors,
    *more: Any,
    **options: Any,
) -> None:
    _, copies, grad_factor, found_inf, rate = more
    for i, (param, first, second) in enumerate(zip(params, exp_avgs, exp_avg_sqs, strict=True)):
        gradient = scaled(grads[i], first.dtype, grad_factor, options["maximize"])
        mask = kept(bits[i], param)
        # Masked weights go to one place more, behind the states.
        rank = mask.flatten().cumsum(0) - 1
        place = torch.where(mask.flatten(), rank, len(first)).clamp(max=len(first))
        wide_first, wide_second = (
            torch.cat([each, each.new_zeros(1)])[place].view(param.shape)
            for each in (first, second)
        )
        weight, *moments = step_reference(
            param, gradient, wide_first, wide_second, steps[i], rate, options
        )
        masked = torch.zeros_like(param) if options["zero_masked"] else param
        new = torch.where(mask, weight.to(param.dtype), masked)
        compact = [
            each.new_zeros(len(first) + 1).scatter_(0, place, each.flatten())[: len(first)]
            for each in moments
        ]
        copy = copy_of(copies, i)
        write_reference(
            [first, second, param, *copy], [*compact, new, *([new] * len(copy))], found_inf
        )


def _check(
    params: Tensors,
    grads: Tensors,
    exp_avgs: Tensors,
    exp_avg_sqs: Tensors,
    steps: Tensors,
    bits: Tensors,
    *more: Any,
    **options: Any,
) -> None:
    ranks, copies, grad_factor, found_inf, rate = more
    check_masked(params, "params", bits)
    check_gradients(grads, params)
    for name, values in (("exp_avgs", exp_avgs), ("exp_avg_sqs", exp_avg_sqs), ("ranks", ranks)):
        check_list(values, name, len(params))
    for i, param in enumerate(params):
        check_shape(bits[i], f"bits[{i}]", ((param.numel() + 7) // 8,))
        check_dtype(exp_avgs[i], f"exp_avgs[{i}]", (state_dtype(param.dtype),))
        check_dtype(exp_avg_sqs[i], f"exp_avg_sqs[{i}]", (exp_avgs[i].dtype,))
        check_dtype(ranks[i], f"ranks[{i}]", (torch.int32,))
        check_shape(exp_avgs[i], f"exp_avgs[{i}]", (exp_avgs[i].numel(),))
        check_shape(exp_avg_sqs[i], f"exp_avg_sqs[{i}]", (exp_avgs[i].numel(),))
        check_shape(ranks[i], f"ranks[{i}]", ((param.numel() + RANK_BLOCK - 1) // RANK_BLOCK,))
        for name, values in (
            ("exp_avgs", exp_avgs),
            ("exp_avg_sqs", exp_avg_sqs),
            ("ranks", ranks),
        ):
            check_device(values[i], f"{name}[{i}]", param.device, f"params[{i}]")
    check_list(steps, "steps", len(params))
    for i, step in enumerate(steps):
        check_scalar(step, f"steps[{i}]")
    check_copies(copies, params)
    check_scalars(params, grad_factor=grad_factor, found_inf=found_inf, rate=rate)
    check_adamw_numbers(**{name: options[name] for name in NUMBERS})


def _args(name: str, device: torch.device, dtype: torch.dtype) -> tuple[Any, ...]:
    made = lists(name, device, dtype)
    bits, states = [], []
    for param, mask, *moments in zip(
        made.params, made.bits, made.moments, made.squares, strict=True
    ):
        everything = torch.ones(param.shape, dtype=torch.bool, device=device)
        bits.append(mask if mask.numel() > 0 else pack_bits(everything))
        states.append([each[kept(bits[-1], each)] for each in moments])
    ranks = [ranks_of_bits(b, p.numel()) for b, p in zip(bits, made.params, strict=True)]
    steps = [torch.tensor(float(2 + i), device=device) for i in range(len(bits))]
    moments, squares = ([pair[i] for pair in states] for i in range(2))
    return made.params, made.grads, moments, squares, steps, bits, ranks, [], None, None, None


NAMES = ("typical", "tiny", "nothing", "no_elements", "all_kept", "all_masked", "empty_words")


def _samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    for name in (*NAMES, "around_a_word", "one_large"):
        yield Sample(_args(name, device, dtype), name, PLAIN, small=name in SMALL)
    args = _args("typical", device, dtype)
    yield Sample(args, "typical_zero", {**PLAIN, "zero_masked": True})
    yield Sample(args, "l2", {**PLAIN, "decoupled": False, "weight_decay": 0.3})
    factor, fine, overflow, rate = (
        torch.full((1,), x, device=device) for x in (0.37, 0.0, 1.0, 0.03)
    )
    yield Sample((*args[:8], factor, fine, rate), "scalars", {**PLAIN, "lr": 9.0}, small=True)
    yield Sample((*args[:8], None, overflow, None), "overflow", {**PLAIN, "zero_masked": True})
    odd = [torch.where(kept(b, g), g, float("nan")) for g, b in zip(args[1], args[5], strict=True)]
    yield Sample((args[0], odd, *args[2:]), "masked_nan", PLAIN)
    if dtype != torch.float32:
        return
    for name in ("typical", "all_masked"):
        params, grads, *states, _, _, _, _ = _args(name, device, dtype)
        grads, copies = with_copies(params, grads)
        args = (params, grads, *states, copies, None, None, None)
        yield Sample(args, f"{name}_copies", PLAIN)
        yield Sample(args, f"{name}_copies_zero", {**PLAIN, "zero_masked": True})


def _errors() -> Iterator[tuple[Any, type[Exception], str]]:
    def wrong(at: int, value: Any, **options: Any) -> Sample:
        args = list(_args("tiny", torch.device("cpu"), torch.float32))
        args[at] = value
        return Sample(tuple(args), "", {**PLAIN, **options})

    _, _, firsts, seconds, _, bits, ranks, *_ = _args("tiny", torch.device("cpu"), torch.float32)
    none = [torch.empty(0, dtype=torch.uint8), bits[1]]
    yield wrong(5, none), ValueError, "Expected bits[0] to have shape (1,). Got (0,)"
    yield wrong(2, firsts[:1]), ValueError, "Expected exp_avgs to have 2 entries. Got 1"
    yield wrong(2, [f.half() for f in firsts]), TypeError, "Expected exp_avgs[0] to have dtype"
    yield wrong(2, [f[None] for f in firsts]), ValueError, "Expected exp_avgs[0] to have shape"
    yield wrong(3, seconds[::-1]), ValueError, "Expected exp_avg_sqs[0] to have shape"
    yield wrong(6, [r.long() for r in ranks]), TypeError, "Expected ranks[0] to have dtype"
    yield wrong(6, [r.repeat(2) for r in ranks]), ValueError, "Expected ranks[0] to have shape (1,)"
    away = [r.to("meta") for r in ranks]
    yield wrong(6, away), ValueError, "Expected ranks[0] to be on cpu like params[0]. Got meta"
    yield wrong(4, [torch.ones(2)] * 2), ValueError, "Expected steps[0] to have one element"
    yield wrong(7, None), TypeError, "Expected copies to be a list of tensors. Got NoneType"
    yield wrong(8, torch.ones(2)), ValueError, "Expected grad_factor to have one element"
    yield wrong(8, None, lr=-1.0), ValueError, "Expected lr to be at least 0 and finite. Got -1.0"


def _cost(params: Tensors, grads: Tensors, *rest: Any, **options: Any) -> Cost:
    state = sum(2 * each.nbytes for each in rest[0])
    weights = sum(p.nbytes for p in params)
    read = sum(each.nbytes for each in (*grads, *rest[3], *rest[4]))
    copies = sum(each.nbytes for each in rest[5])
    kept_weights = sum(each.numel() for each in rest[0])
    return Cost(15 * kept_weights, weights + read + state, weights + state + copies)


def _limits(*args: Any, **options: Any) -> str | None:
    return why_no_kernel(args[0], args[4])


compact_adamw_op = define_op(
    "update_compact_adamw_(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] exp_avgs, "
    "Tensor(c!)[] exp_avg_sqs, Tensor[] steps, Tensor[] bits, Tensor[] ranks, "
    "Tensor(d!)[] copies, Tensor? grad_factor, Tensor? found_inf, Tensor? rate, *, float lr, "
    "float beta1, float beta2, float eps, float weight_decay, bool decoupled, bool maximize, "
    "bool zero_masked) -> ()",
    reference=_reference,
    check=_check,
    fake=lambda *args, **options: None,
    setup=None,
    backward="it works in place, on weights and states outside of the graph.",
    samples=_samples,
    errors=_errors,
    cost=_cost,
    triton=Launcher("update.compact_adamw", "compact_adamw", _limits),
)


def compact_adamw_(  # noqa: PLR0913 - those of masked_adamw_, and ranks
    params: Tensors,
    grads: Tensors,
    exp_avgs: Tensors,
    exp_avg_sqs: Tensors,
    steps: Tensors,
    bits: Tensors,
    ranks: Tensors,
    grad_factor: Tensor | None = None,
    *,
    copies: Tensors = (),
    found_inf: Tensor | None = None,
    rate: Tensor | None = None,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    decoupled: bool = True,
    maximize: bool = False,
    zero_masked: bool = False,
) -> None:
    """The step of :func:`masked_adamw_` with states of kept weights alone, in their order.

    Args:
        exp_avgs, exp_avg_sqs: ``m`` and ``v``, ``[kept]``, those of kept weights in the order of
            the flattened weight; float64 for float64, else float32.
        bits: uint8 ``[ceil(numel / 8)]`` of each tensor; as many are set as states are there (not
            checked: that would wait for the device; states beyond are not read).
        ranks: of :func:`ranks_of_bits`.
        params, grads, steps, grad_factor, copies, found_inf, rate, lr, betas, eps, weight_decay,
            decoupled, maximize, zero_masked: as there.

    Raises:
        TypeError, ValueError: lists, dtypes, shapes, devices or numbers that do not fit; nothing is
            changed then.

    Gradients: none. Deterministic. Cost: for float32 at density d, 16 d bytes for the states, and
    12 for each weight of every eight that have a kept one. On the CPU in plain torch.
    Reference: such states are those of Ansell et al., Scaling Sparse Fine-Tuning to Large Language
    Models (SpIEL), 2024, and of Singh and Bhatele, Exploiting Sparsity in Pruned Neural Networks
    to Optimize Large Model Training (SAMO), 2023.
    """
    compact_adamw_op(
        params,
        grads,
        exp_avgs,
        exp_avg_sqs,
        steps,
        bits,
        ranks,
        copies,
        grad_factor,
        found_inf,
        rate,
        lr=lr,
        beta1=betas[0],
        beta2=betas[1],
        eps=eps,
        weight_decay=weight_decay,
        decoupled=decoupled,
        maximize=maximize,
        zero_masked=zero_masked,
    )
