"""``update_masked_adamw_``: one step of AdamW on the kept weights of many tensors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from sparsekern._checks import check_numbers
from sparsekern.kernels.launch import Launcher
from sparsekern.ops._define import Cost, Sample, define_op
from sparsekern.ops.update._checks import (
    check_copies,
    check_gradients,
    check_like,
    check_list,
    check_masked,
    check_scalar,
    check_scalars,
    copy_of,
    kept,
    scaled,
    why_no_kernel,
    write_reference,
)
from sparsekern.ops.update._samples import SMALL, all_lists, lists, shared_errors, with_copies

Tensors = Sequence[Tensor]
NUMBERS = ("lr", "beta1", "beta2", "eps", "weight_decay")
PLAIN: dict[str, Any] = {
    **{"lr": 1e-2, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.01},
    **{"decoupled": True, "maximize": False, "zero_masked": False},
}


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
    copies, grad_factor, found_inf, rate = more
    for i, (param, exp_avg, exp_avg_sq) in enumerate(
        zip(params, exp_avgs, exp_avg_sqs, strict=True)
    ):
        gradient = scaled(grads[i], exp_avg.dtype, grad_factor, options["maximize"])
        weight, *moments = step_reference(
            param, gradient, exp_avg, exp_avg_sq, steps[i], rate, options
        )
        mask = kept(bits[i], param)
        masked = torch.zeros_like(param) if options["zero_masked"] else param
        new = torch.where(mask, weight.to(param.dtype), masked)
        old = (exp_avg, exp_avg_sq)
        moments = [torch.where(mask, m, o) for m, o in zip(moments, old, strict=True)]
        copy = copy_of(copies, i)
        write_reference([*old, param, *copy], [*moments, new, *([new] * len(copy))], found_inf)


def step_reference(
    param: Tensor,
    gradient: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: Tensor,
    rate: Tensor | None,
    options: dict[str, Any],
) -> tuple[Tensor, Tensor, Tensor]:
    """What the weight and its moments become where they are kept."""
    beta1, beta2 = options["beta1"], options["beta2"]
    # Rate, decay and the corrections of the bias in float64, as torch's optimisers take them.
    time = step.reshape(()).to(param.device, torch.float64)
    lr = options["lr"] if rate is None else rate.reshape(()).double()
    weight = param.to(exp_avg.dtype)
    if options["weight_decay"] != 0 and options["decoupled"]:
        decay = torch.ones_like(time) - lr * options["weight_decay"]
        weight = weight * decay.to(weight)
    elif options["weight_decay"] != 0:
        gradient = gradient + options["weight_decay"] * weight
    step_size = (lr / (1 - beta1**time)).to(weight)
    root_factor = (1 - beta2**time).sqrt().to(weight)
    first = exp_avg * beta1 + gradient * (1 - beta1)
    second = exp_avg_sq * beta2 + gradient * gradient * (1 - beta2)
    weight = weight - step_size * first / (second.sqrt() / root_factor + options["eps"])
    return weight, first, second


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
    copies, grad_factor, found_inf, rate = more
    check_masked(params, "params", bits)
    check_gradients(grads, params)
    check_like(exp_avgs, "exp_avgs", params, is_state=True)
    check_like(exp_avg_sqs, "exp_avg_sqs", params, is_state=True)
    check_list(steps, "steps", len(params))
    for i, step in enumerate(steps):
        check_scalar(step, f"steps[{i}]")
    check_copies(copies, params)
    check_scalars(params, grad_factor=grad_factor, found_inf=found_inf, rate=rate)
    check_adamw_numbers(**{name: options[name] for name in NUMBERS})


def check_adamw_numbers(
    lr: float, beta1: float, beta2: float, eps: float, weight_decay: float
) -> None:
    """Raises unless they can be used."""
    check_numbers(lr=lr, beta1=beta1, beta2=beta2, eps=eps, weight_decay=weight_decay)
    for name, beta in (("beta1", beta1), ("beta2", beta2)):
        if beta >= 1:
            raise ValueError(f"Expected {name} to be below 1. Got {beta!r}.")


def _args(name: str, device: torch.device, dtype: torch.dtype) -> tuple[Any, ...]:
    made = lists(name, device, dtype)
    steps = [torch.tensor(float(2 + i), device=device) for i in range(len(made.params))]
    states = (made.moments, made.squares)
    return made.params, made.grads, *states, steps, made.bits, [], None, None, None


def _samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    for name, _ in all_lists(device, dtype):
        args = _args(name, device, dtype)
        yield Sample(args, name, PLAIN, small=name in SMALL)
        yield Sample(args, f"{name}_zero", {**PLAIN, "zero_masked": True})
    args = _args("typical", device, dtype)
    factor = torch.tensor(0.37, device=device)
    yield Sample((*args[:7], factor, None, None), "factor", PLAIN, small=True)
    yield Sample(args, "l2", {**PLAIN, "decoupled": False, "weight_decay": 0.3})
    yield Sample(args, "no_decay", {**PLAIN, "weight_decay": 0.0})
    yield Sample(args, "maximize", {**PLAIN, "maximize": True})
    first = [torch.ones((), device=device) for _ in args[0]]
    zeros = [[torch.zeros_like(each) for each in args[2]] for _ in range(2)]
    yield Sample((*args[:2], *zeros, first, *args[5:]), "first_step", PLAIN)
    rate, fine, overflow = (torch.full((1,), x, device=device) for x in (0.03, 0.0, 1.0))
    yield Sample((*args[:7], factor, fine, rate), "scalars", {**PLAIN, "lr": 9.0}, small=True)
    yield Sample((*args[:7], None, overflow, None), "overflow", {**PLAIN, "zero_masked": True})
    yield from _copy_samples(device, dtype)
    # Nothing that a masked weight holds may reach anything else.
    params, grads, _, squares, steps, *_ = _args("around_a_word", device, dtype)
    odd = [torch.full_like(grad, float("nan")) for grad in grads]
    none = [torch.zeros((p.numel() + 7) // 8, dtype=torch.uint8, device=device) for p in params]
    for grad, param, mask in zip(odd, params, none, strict=True):
        grad[0], param[1] = 1.0, float("inf")
        mask[0] = 1
    moments = [torch.zeros_like(each) for each in squares]
    yield Sample((params, odd, moments, squares, steps, none, *args[6:]), "masked_nan", PLAIN)


def _copy_samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    """float32 weights whose copies and gradients have 16 bits."""
    if dtype != torch.float32:
        return
    for name in ("typical", "no_elements", "all_masked", "empty_words", "around_a_word"):
        params, grads, *states, _, _, _, _ = _args(name, device, dtype)
        grads, copies = with_copies(params, grads)
        args = (params, grads, *states, copies, None, None, None)
        yield Sample(args, f"{name}_copies", PLAIN, small=name in SMALL)
        yield Sample(args, f"{name}_copies_zero", {**PLAIN, "zero_masked": True})
    overflow = torch.ones((), device=device)
    args = (*args[:7], None, overflow, None)
    yield Sample(args, "copies_overflow", {**PLAIN, "zero_masked": True})


def _errors() -> Iterator[tuple[Any, type[Exception], str]]:
    def wrong(at: int, value: Any, **options: Any) -> Sample:
        args = list(_args("tiny", torch.device("cpu"), torch.float32))
        args[at] = value
        return Sample(tuple(args), "", {**PLAIN, **options})

    params, grads, moments, _, steps, bits, *_ = _args("tiny", torch.device("cpu"), torch.float32)
    yield wrong(0, params[0]), TypeError, "Expected params to be a list of tensors. Got Tensor"
    yield wrong(0, [params[0], 3]), TypeError, "Expected params[1] to be a tensor. Got int"
    yield wrong(0, [p.long() for p in params]), TypeError, "Expected params[0] to have dtype"
    strided = [torch.zeros(2, 3).t(), params[1]]
    yield wrong(0, strided), ValueError, "Expected params[0] to be contiguous. Got strides (1, 3)"
    yield wrong(1, grads[:1]), ValueError, "Expected grads to have 2 entries. Got 1"
    yield wrong(1, grads[::-1]), ValueError, "Expected grads[0] to have shape (3, 2). Got (5,)"
    yield wrong(1, [g.double() for g in grads]), TypeError, "Expected grads[0] to have dtype"
    yield wrong(2, moments[::-1]), ValueError, "Expected exp_avgs[0] to have shape"
    yield wrong(3, [m.half() for m in moments]), TypeError, "Expected exp_avg_sqs[0] to have dtype"
    yield wrong(4, [torch.ones(2), steps[1]]), ValueError, "Expected steps[0] to have one element"
    yield wrong(4, [s.long() for s in steps]), TypeError, "Expected steps[0] to have dtype"
    yield wrong(5, [bits[0].bool(), bits[1]]), TypeError, "Expected bits[0] to have dtype"
    yield wrong(5, [bits[0].repeat(2), bits[1]]), ValueError, "Expected bits[0] to have shape (1,)"
    for at, value, kind, sentence in shared_errors(6, params):
        yield wrong(at, value), kind, sentence
    yield wrong(7, None, lr=-1.0), ValueError, "Expected lr to be at least 0 and finite. Got -1.0"
    yield wrong(7, None, eps="x"), TypeError, "Expected eps to be a number. Got 'x'"
    yield wrong(7, None, beta2=1.0), ValueError, "Expected beta2 to be below 1. Got 1.0"


def _cost(params: Tensors, *rest: Any, **options: Any) -> Cost:
    numel = sum(p.numel() for p in params)
    state = sum(2 * each.nbytes for each in rest[1])
    weights = sum(p.nbytes for p in params)
    grads, masks, copies = (sum(each.nbytes for each in rest[i]) for i in (0, 4, 5))
    return Cost(15 * numel, weights + grads + state + masks, weights + state + copies)


def _limits(*args: Any, **options: Any) -> str | None:
    return why_no_kernel(args[0], args[4])


masked_adamw_op = define_op(
    "update_masked_adamw_(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] exp_avgs, "
    "Tensor(c!)[] exp_avg_sqs, Tensor[] steps, Tensor[] bits, Tensor(d!)[] copies, "
    "Tensor? grad_factor, Tensor? found_inf, Tensor? rate, *, float lr, float beta1, float beta2, "
    "float eps, float weight_decay, bool decoupled, bool maximize, bool zero_masked) -> ()",
    reference=_reference,
    check=_check,
    fake=lambda *args, **options: None,
    setup=None,
    backward="it works in place, on weights and states outside of the graph.",
    samples=_samples,
    errors=_errors,
    cost=_cost,
    triton=Launcher("update.masked_adamw", "masked_adamw", _limits),
)


def masked_adamw_(  # noqa: PLR0913 - those of torch's optimiser, and what makes it one pass
    params: Tensors,
    grads: Tensors,
    exp_avgs: Tensors,
    exp_avg_sqs: Tensors,
    steps: Tensors,
    bits: Tensors,
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
    """One step of AdamW where a weight's bit is 1, in place, in one pass over many tensors.

    ``g = factor grad``; ``m = beta1 m + (1 - beta1) g``; ``v = beta2 v + (1 - beta2) g^2``;
    ``p = (1 - lr weight_decay) p - lr m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps)``.
    With ``decoupled=False`` the decay is in the gradient instead: ``g = factor grad + weight_decay
    p`` (Adam). Where the bit is 0, ``m`` and ``v`` stay as they are and ``p`` too, or becomes 0.

    Args:
        params: tensors of any shape, contiguous, on one device, no two in the same memory;
            float32, float64, bfloat16 or float16, which may be mixed.
        grads: shapes and dtypes of ``params``; those of float32 weights may be bfloat16 or float16.
        exp_avgs, exp_avg_sqs: ``m`` and ``v``, shapes of ``params``; float64 for float64, else
            float32.
        steps: ``t`` of each tensor, this step counted: one float32 or float64, at least 1.
        bits: mask of each tensor, uint8 ``[ceil(numel / 8)]`` as :func:`mask.pack_bits` makes it;
            ``[0]`` where all weights are kept.
        grad_factor: one float32 or float64 that gradients are multiplied by; None means 1. On the
            weights' device, as the two below.
        copies: what receives the new weights rounded to 16 bits, masked ones too: for each float32
            parameter a bfloat16 or float16 tensor of its shape, or an empty one; or no tensors.
        found_inf: one float32; unless it is zero, nothing changes.
        rate: one float32 or float64 in the place of ``lr``, which a CUDA graph can replay.
        lr, eps, weight_decay: at least 0.
        betas: ``beta1`` and ``beta2``, in [0, 1).
        decoupled: AdamW's decay, else Adam's.
        maximize: goes up the gradient.
        zero_masked: masked weights become zero.

    Raises:
        TypeError, ValueError: lists, dtypes, shapes, devices or numbers that do not fit; nothing is
            changed then.

    Gradients: none. Deterministic, for any number of threads. Cost: 28 bytes and a bit for each
    float32 weight, 2 more for a copy; nothing is computed for long runs of masked weights. 16-bit
    weights are computed in float32 and rounded once.
    Reference: Loshchilov and Hutter, Decoupled Weight Decay Regularization, 2019, algorithm 2.
    """
    masked_adamw_op(
        params,
        grads,
        exp_avgs,
        exp_avg_sqs,
        steps,
        bits,
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
