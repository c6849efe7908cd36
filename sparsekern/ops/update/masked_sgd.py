"""``update_masked_sgd_``: one step of SGD on the kept weights of many tensors."""

from __future__ import annotations

import math
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
    check_masked,
    check_scalars,
    copy_of,
    kept,
    scaled,
    state_dtype,
    why_no_kernel,
    write_reference,
)
from sparsekern.ops.update._samples import SMALL, all_lists, lists, shared_errors, with_copies

Tensors = Sequence[Tensor]
_NUMBERS = ("lr", "momentum", "dampening", "weight_decay", "nesterov")
_PLAIN: dict[str, Any] = {
    **{"lr": 0.1, "momentum": 0.9, "dampening": 0.0, "weight_decay": 0.01},
    **{"nesterov": False, "maximize": False, "zero_masked": False},
}


def _reference(
    params: Tensors,
    grads: Tensors,
    momentum_buffers: Tensors,
    starts: Sequence[bool],
    bits: Tensors,
    *more: Any,
    **options: Any,
) -> None:
    copies, grad_factor, found_inf, rate = more
    momentum = options["momentum"]
    for i, (param, grad) in enumerate(zip(params, grads, strict=True)):
        mask = kept(bits[i], param)
        gradient = scaled(grad, state_dtype(param.dtype), grad_factor, options["maximize"])
        weight = param.to(gradient.dtype)
        if options["weight_decay"] != 0:
            gradient = gradient + options["weight_decay"] * weight
        if momentum != 0:
            old = momentum_buffers[i]
            moved = old * momentum + gradient * (1 - options["dampening"])
            buffer = gradient if starts[i] else moved
            gradient = gradient + momentum * buffer if options["nesterov"] else buffer
            write_reference([old], [torch.where(mask, buffer, old)], found_inf)
        lr = options["lr"] if rate is None else rate.reshape(()).to(weight)
        weight = weight - lr * gradient
        masked = torch.zeros_like(param) if options["zero_masked"] else param
        new = torch.where(mask, weight.to(param.dtype), masked)
        copy = copy_of(copies, i)
        write_reference([param, *copy], [new, *([new] * len(copy))], found_inf)


def _check(
    params: Tensors,
    grads: Tensors,
    momentum_buffers: Tensors,
    starts: Sequence[bool],
    bits: Tensors,
    *more: Any,
    **options: Any,
) -> None:
    copies, grad_factor, found_inf, rate = more
    check_masked(params, "params", bits)
    check_sgd_numbers(**{name: options[name] for name in _NUMBERS})
    with_momentum = params if options["momentum"] != 0 else []
    check_gradients(grads, params)
    check_like(momentum_buffers, "momentum_buffers", with_momentum, is_state=True)
    if len(starts) != len(with_momentum):
        raise ValueError(
            f"Expected starts to have {len(with_momentum)} entries. Got {len(starts)}."
        )
    check_copies(copies, params)
    check_scalars(params, grad_factor=grad_factor, found_inf=found_inf, rate=rate)


def check_sgd_numbers(
    lr: float, momentum: float, dampening: float, weight_decay: float, nesterov: bool
) -> None:
    """Raises unless they can be used."""
    check_numbers(lr=lr, momentum=momentum, weight_decay=weight_decay)
    if not isinstance(dampening, (int, float)) or not math.isfinite(dampening):
        raise ValueError(f"Expected dampening to be a finite number. Got {dampening!r}.")
    if nesterov and (momentum == 0 or dampening != 0):
        raise ValueError(
            "Expected a momentum above 0 and no dampening for nesterov. Got momentum "
            f"{momentum!r} and dampening {dampening!r}."
        )


def _args(name: str, device: torch.device, dtype: torch.dtype) -> tuple[Any, ...]:
    made = lists(name, device, dtype)
    starts = [i % 2 == 1 for i in range(len(made.params))]
    return made.params, made.grads, made.moments, starts, made.bits, [], None, None, None


def _samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    for name, _ in all_lists(device, dtype):
        args = _args(name, device, dtype)
        yield Sample(args, name, _PLAIN, small=name in SMALL)
        yield Sample(args, f"{name}_zero", {**_PLAIN, "zero_masked": True})
    args = _args("typical", device, dtype)
    plain = (*args[:2], [], [], *args[4:])
    no_momentum = {**_PLAIN, "momentum": 0.0}
    yield Sample(plain, "no_momentum", no_momentum, small=True)
    yield Sample(plain, "no_momentum_zero", {**no_momentum, "zero_masked": True})
    factor = torch.tensor(0.37, device=device)
    yield Sample((*args[:6], factor, None, None), "factor", _PLAIN, small=True)
    rate, fine, overflow = (torch.full((1,), x, device=device) for x in (0.03, 0.0, 1.0))
    yield Sample((*args[:6], factor, fine, rate), "scalars", {**_PLAIN, "lr": 9.0}, small=True)
    yield Sample((*args[:6], None, overflow, None), "overflow", {**_PLAIN, "zero_masked": True})
    yield from _copy_samples(device, dtype)
    yield Sample(args, "nesterov", {**_PLAIN, "nesterov": True})
    yield Sample(args, "dampening", {**_PLAIN, "dampening": 0.4})
    yield Sample(args, "no_decay", {**_PLAIN, "weight_decay": 0.0})
    yield Sample(args, "maximize", {**_PLAIN, "maximize": True})
    # Nothing that a masked weight holds may reach anything else.
    params, grads, moments, starts, *_ = _args("around_a_word", device, dtype)
    odd = [torch.full_like(grad, float("nan")) for grad in grads]
    none = [torch.zeros((p.numel() + 7) // 8, dtype=torch.uint8, device=device) for p in params]
    for grad, param, mask in zip(odd, params, none, strict=True):
        grad[0], param[1] = 1.0, float("inf")
        mask[0] = 1
    yield Sample((params, odd, moments, starts, none, *args[5:]), "masked_nan", _PLAIN)


def _copy_samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    """float32 weights whose copies and gradients have 16 bits."""
    if dtype != torch.float32:
        return
    for name in ("typical", "no_elements", "all_masked", "empty_words"):
        params, grads, *states, _, _, _, _ = _args(name, device, dtype)
        grads, copies = with_copies(params, grads)
        args = (params, grads, *states, copies, None, None, None)
        yield Sample(args, f"{name}_copies", _PLAIN, small=name in SMALL)
        yield Sample(args, f"{name}_copies_zero", {**_PLAIN, "zero_masked": True})
    overflow = torch.ones((), device=device)
    args = (*args[:6], None, overflow, None)
    yield Sample(args, "copies_overflow", {**_PLAIN, "zero_masked": True})


def _errors() -> Iterator[tuple[Any, type[Exception], str]]:
    def wrong(at: int, value: Any, **options: Any) -> Sample:
        args = list(_args("tiny", torch.device("cpu"), torch.float32))
        args[at] = value
        return Sample(tuple(args), "", {**_PLAIN, **options})

    params, grads, moments, _, bits, *_ = _args("tiny", torch.device("cpu"), torch.float32)
    yield wrong(0, 5), TypeError, "Expected params to be a list of tensors. Got int"
    yield wrong(0, [p.long() for p in params]), TypeError, "Expected params[0] to have dtype"
    yield wrong(1, grads[::-1]), ValueError, "Expected grads[0] to have shape (3, 2). Got (5,)"
    yield wrong(2, []), ValueError, "Expected momentum_buffers to have 2 entries. Got 0"
    yield wrong(2, moments[::-1]), ValueError, "Expected momentum_buffers[0] to have shape"
    yield wrong(2, moments, momentum=0.0), ValueError, "Expected momentum_buffers to have 0 entries"
    yield wrong(3, [True]), ValueError, "Expected starts to have 2 entries. Got 1"
    yield wrong(4, [bits[0].repeat(2), bits[1]]), ValueError, "Expected bits[0] to have shape (1,)"
    yield wrong(4, bits[:1]), ValueError, "Expected bits to have 2 entries. Got 1"
    for at, value, kind, sentence in shared_errors(5, params):
        yield wrong(at, value), kind, sentence
    double = list(_args("tiny", torch.device("cpu"), torch.float64))
    double[5] = [p.half() for p in params]
    yield (
        Sample(tuple(double), "", _PLAIN),
        TypeError,
        "Expected params[0] to have dtype torch.float32 where it has a copy. Got torch.float64",
    )
    yield wrong(6, None, momentum=-0.1), ValueError, "Expected momentum to be at least 0 and finite"
    yield (
        wrong(6, None, nesterov=True, dampening=0.1),
        ValueError,
        "Expected a momentum above 0 and no dampening for nesterov. Got momentum 0.9 and dampening",
    )


def _cost(params: Tensors, grads: Tensors, buffers: Tensors, *rest: Any, **options: Any) -> Cost:
    numel = sum(p.numel() for p in params)
    weights = sum(p.nbytes for p in params)
    state = sum(each.nbytes for each in buffers)
    read = sum(each.nbytes for each in (*grads, *rest[1]))
    copies = sum(each.nbytes for each in rest[2])
    return Cost(6 * numel, weights + read + state, weights + state + copies)


def _limits(*args: Any, **options: Any) -> str | None:
    return why_no_kernel(args[0])


masked_sgd_op = define_op(
    "update_masked_sgd_(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] momentum_buffers, "
    "bool[] starts, Tensor[] bits, Tensor(d!)[] copies, Tensor? grad_factor, Tensor? found_inf, "
    "Tensor? rate, *, float lr, float momentum, float dampening, float weight_decay, "
    "bool nesterov, bool maximize, bool zero_masked) -> ()",
    reference=_reference,
    check=_check,
    fake=lambda *args, **options: None,
    setup=None,
    backward="it works in place, on weights and states outside of the graph.",
    samples=_samples,
    errors=_errors,
    cost=_cost,
    triton=Launcher("update.masked_sgd", "masked_sgd", _limits),
)


def masked_sgd_(  # noqa: PLR0913 - those of torch's optimiser, and what makes it one pass
    params: Tensors,
    grads: Tensors,
    momentum_buffers: Tensors,
    starts: Sequence[bool],
    bits: Tensors,
    grad_factor: Tensor | None = None,
    *,
    copies: Tensors = (),
    found_inf: Tensor | None = None,
    rate: Tensor | None = None,
    lr: float,
    momentum: float = 0.0,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    maximize: bool = False,
    zero_masked: bool = False,
) -> None:
    """One step of SGD where a weight's bit is 1, in place, in one pass over many tensors.

    ``g = factor grad + weight_decay p``; ``b = momentum b + (1 - dampening) g``, at the start
    ``b = g``; ``p = p - lr b``, by Nesterov ``p - lr (g + momentum b)``, without a momentum
    ``p - lr g``. Where the bit is 0, ``b`` stays as it is and ``p`` too, or becomes 0.

    Args:
        params: tensors of any shape, contiguous, on one device, no two in the same memory;
            float32, float64, bfloat16 or float16, which may be mixed.
        grads: shapes and dtypes of ``params``; those of float32 weights may be bfloat16 or float16.
        momentum_buffers: ``b``, shapes of ``params``; float64 for float64, else float32; an empty
            list without a momentum.
        starts: for each buffer whether it has no gradient yet; an empty list without a momentum.
        bits: mask of each tensor, uint8 ``[ceil(numel / 8)]`` as :func:`mask.pack_bits` makes it;
            ``[0]`` where all weights are kept.
        grad_factor: one float32 or float64 that gradients are multiplied by; None means 1. On the
            weights' device, as the two below.
        copies: what receives the new weights rounded to 16 bits, masked ones too: for each float32
            parameter a bfloat16 or float16 tensor of its shape, or an empty one; or no tensors.
        found_inf: one float32; unless it is zero, nothing changes.
        rate: one float32 or float64 in the place of ``lr``, which a CUDA graph can replay.
        lr, momentum, weight_decay: at least 0.
        dampening: any finite number, 0 for Nesterov.
        nesterov: Nesterov's momentum.
        maximize: goes up the gradient.
        zero_masked: masked weights become zero.

    Raises:
        TypeError, ValueError: lists, dtypes, shapes, devices or numbers that do not fit; nothing is
            changed then.

    Gradients: none. Deterministic, for any number of threads. Cost: 20 bytes and a bit for each
    float32 weight, 12 without a momentum, 2 more for a copy; nothing is computed for long runs of
    masked weights. 16-bit weights are computed in float32 and rounded once.
    Reference: Sutskever et al., On the importance of initialization and momentum in deep learning,
    2013, in the form of torch.optim.SGD.
    """
    masked_sgd_op(
        params,
        grads,
        momentum_buffers,
        starts,
        bits,
        copies,
        grad_factor,
        found_inf,
        rate,
        lr=lr,
        momentum=momentum,
        dampening=dampening,
        weight_decay=weight_decay,
        nesterov=nesterov,
        maximize=maximize,
        zero_masked=zero_masked,
    )
