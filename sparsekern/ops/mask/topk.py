"""``mask_topk`` and ``mask_topk_bits``: keep the k largest scores."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from sparsekern._checks import check_device, check_dtype, check_shape, check_tensor
from sparsekern.kernels.launch import Launcher
from sparsekern.ops._define import Cost, Sample, define_op
from sparsekern.ops.mask.bits import pack_bits, unpack_bits


def _reference(scores: Tensor, k: int, among: Tensor | None = None) -> Tensor:
    flat = scores.flatten()
    usable = torch.ones_like(flat, dtype=torch.bool) if among is None else among.flatten()
    if k > int(usable.sum()):
        raise RuntimeError(f"Expected k to be at most the number of candidates. Got {k}.")
    # Two stable sorts: by score (NaN lowest), then candidates first.
    order = torch.argsort(
        flat.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf),
        descending=True,
        stable=True,
    )
    order = order[torch.argsort(flat[order].isnan().to(torch.uint8), stable=True)]
    order = order[torch.argsort((~usable[order]).to(torch.uint8), stable=True)]
    mask = torch.zeros_like(usable)
    mask[order[:k]] = True
    return mask.view(scores.shape)


def _bits_reference(scores: Tensor, k: int, among: Tensor | None = None) -> Tensor:
    candidates = None if among is None else unpack_bits(among, scores.shape)
    return pack_bits(_reference(scores, k, candidates))


def _check_scores(scores: Tensor, k: int) -> None:
    check_tensor(scores, "scores")
    check_dtype(scores, "scores", (torch.float32, torch.float64))
    if not isinstance(k, (int, torch.SymInt)):
        raise TypeError(f"Expected k to be an integer. Got {k!r}.")
    if not isinstance(k, torch.SymInt) and not 0 <= k <= scores.numel():
        raise ValueError(f"Expected k to be between 0 and {scores.numel()}. Got {k}.")


def _check(scores: Tensor, k: int, among: Tensor | None = None) -> None:
    _check_scores(scores, k)
    if among is not None:
        check_tensor(among, "among")
        check_dtype(among, "among", (torch.bool,))
        check_shape(among, "among", tuple(scores.shape))
        check_device(among, "among", scores.device, "scores")


def _check_bits(scores: Tensor, k: int, among: Tensor | None = None) -> None:
    _check_scores(scores, k)
    if among is not None:
        check_tensor(among, "among")
        check_dtype(among, "among", (torch.uint8,))
        check_shape(among, "among", ((scores.numel() + 7) // 8,))
        check_device(among, "among", scores.device, "scores")


def _fake(scores: Tensor, k: int, among: Tensor | None = None) -> Tensor:
    return torch.empty_like(scores, dtype=torch.bool, memory_format=torch.contiguous_format)


def _samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(40, 50, generator=generator).to(device, dtype)
    for k in (0, 1, 777, 1999, 2000):
        yield Sample((scores, k, None), f"random_{k}", small=True)
    yield Sample((scores.t(), 333, None), "strided")
    yield Sample((scores, 100, scores > 0.5), "among")
    yield Sample((scores, int((scores > 0.5).sum()), scores > 0.5), "among_all")
    yield Sample((torch.zeros_like(scores), 123, None), "all_equal")
    few = (torch.arange(2000, device=device) % 3).to(dtype).view(40, 50)
    yield Sample((few, 1000, None), "ties")
    signed = torch.tensor([0.0, -0.0, 0.0, -0.0, 1.0, -1.0], device=device, dtype=dtype)
    yield Sample((signed, 3, None), "signed_zeros", small=True)
    inf = float("inf")
    odd = torch.tensor([float("nan"), -inf, inf, 0.0, float("nan"), -2.0, inf], dtype=dtype)
    for k in (1, 2, 4, 5, 6):
        yield Sample((odd.to(device), k, None), f"not_finite_{k}", small=True)
    yield Sample((torch.empty(0, device=device, dtype=dtype), 0, None), "nothing", small=True)
    yield from _long_samples(device, dtype, generator)


def _long_samples(
    device: torch.device, dtype: torch.dtype, generator: torch.Generator
) -> Iterator[Sample]:
    """Scores of several pieces, whose threshold is guessed from a sample."""
    middle = torch.randn(90, 201, generator=generator).round(decimals=1).to(device, dtype)
    yield Sample((middle.t(), 6_000, None), "middle")
    yield Sample((middle, 9_000, middle > -1), "middle_among")
    long = torch.randn(200_000, generator=generator).to(device, dtype)
    yield Sample((long, 10_000, None), "several_chunks")
    yield Sample((long, 20_000, long < 0.3), "long_among")
    full = torch.full((150_000,), 2.0, device=device, dtype=dtype)
    yield Sample((full, 140_000, None), "long_ties")
    yield Sample((torch.where(long < 0.5, torch.nan, long), 100_000, None), "long_not_a_number")
    yield Sample((torch.where(long < 1, -torch.inf, torch.inf), 100_000, None), "long_infinities")
    # Neighbours that are equal make the sample worth a sixteenth of what it counts; these guesses
    # miss, the threshold is above the first and below the second.
    runs = torch.randn(12_500, generator=generator).repeat_interleave(16).to(device, dtype)
    yield Sample((runs, 128_000, None), "long_runs_above")
    yield Sample((-runs, 72_000, None), "long_runs_below")
    # Nearly all candidates for the threshold in one piece, more than are listed.
    peak = torch.rand(400_000, generator=generator) * 100
    peak[70_000:130_000] = 50 + peak[70_000:130_000] / 1000
    yield Sample((peak.to(device, dtype), 200_000, None), "long_peak")


def _bits_samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    for sample in _samples(device, dtype):
        scores, k, among = sample.args
        packed = None if among is None else pack_bits(among)
        yield Sample((scores, k, packed), sample.id, small=sample.small)
    scores = torch.linspace(-1, 1, 13, device=device, dtype=dtype)
    every = torch.full((2,), 255, device=device, dtype=torch.uint8)
    yield Sample((scores, 13, every), "bits_behind_the_end", small=True)


def _errors() -> Iterator[tuple[tuple[Any, ...], type[Exception], str]]:
    scores = torch.zeros(2, 3)
    yield (scores.long(), 1, None), TypeError, "Expected scores to have dtype"
    yield (scores, 7, None), ValueError, "Expected k to be between 0 and 6"
    yield (scores, 2.5, None), TypeError, "Expected k to be an integer. Got 2.5"
    yield (scores, 1, [True]), TypeError, "Expected among to be a tensor. Got list"
    yield (scores, 1, torch.zeros(3, dtype=torch.bool)), ValueError, "Expected among to have shape"
    nothing = torch.zeros(2, 3, dtype=torch.bool)
    yield (scores, 1, nothing), RuntimeError, "Expected k to be at most the number of candidates"


def _bits_errors() -> Iterator[tuple[tuple[Any, ...], type[Exception], str]]:
    scores = torch.zeros(2, 3)
    bits = torch.zeros(1, dtype=torch.uint8)
    yield (scores.long(), 1, None), TypeError, "Expected scores to have dtype"
    yield (scores, 7, None), ValueError, "Expected k to be between 0 and 6"
    yield (scores, 1, scores > 0), TypeError, "Expected among to have dtype torch.uint8"
    yield (scores, 1, bits[:0]), ValueError, "Expected among to have shape (1,)"
    yield (scores, 1, bits), RuntimeError, "Expected k to be at most the number of candidates"


def _cost(scores: Tensor, k: int, among: Tensor | None = None) -> Cost:
    read = scores.nbytes + (0 if among is None else among.nbytes)
    return Cost(0, read, scores.numel())


def _bits_cost(scores: Tensor, k: int, among: Tensor | None = None) -> Cost:
    read = scores.nbytes + (0 if among is None else among.nbytes)
    return Cost(0, read, (scores.numel() + 7) // 8)


def _limits(scores: Tensor, k: int, among: Tensor | None = None) -> str | None:
    if scores.dtype != torch.float32:
        return f"the kernels order 32 bits. Got scores of {scores.dtype}."
    return None


topk_op = define_op(
    "mask_topk(Tensor scores, SymInt k, Tensor? among=None) -> Tensor",
    reference=_reference,
    check=_check,
    fake=_fake,
    setup=None,
    backward="a mask has no gradient.",
    samples=_samples,
    errors=_errors,
    cost=_cost,
    triton=Launcher("mask.topk", "topk", _limits),
)

topk_bits_op = define_op(
    "mask_topk_bits(Tensor scores, SymInt k, Tensor? among=None) -> Tensor",
    reference=_bits_reference,
    check=_check_bits,
    fake=lambda scores, k, among=None: scores.new_empty(
        (scores.numel() + 7) // 8, dtype=torch.uint8
    ),
    setup=None,
    backward="a mask has no gradient.",
    samples=_bits_samples,
    errors=_bits_errors,
    cost=_bits_cost,
    triton=Launcher("mask.topk", "topk_bits", _limits),
)


def topk(scores: Tensor, k: int, among: Tensor | None = None) -> Tensor:
    """The mask of the ``k`` largest scores; of equal ones, the first in row-major order.

    Args:
        scores: any shape, float32 or float64. NaN ranks below everything, ``-0.0`` equals ``0.0``.
        k: how many to keep, at most the number of candidates.
        among: bool of the same shape, the candidates; None means all.

    Returns:
        bool of the same shape with exactly ``k`` True entries.

    Raises:
        TypeError, ValueError: dtype, shape or device of an argument; ``k`` out of range.
        RuntimeError: fewer candidates than ``k``. On a GPU the host does not wait to learn that:
            all candidates are kept, unless SPARSEKERN_DEBUG=1 asks for the error.

    Gradients: none. Deterministic, for any number of threads. Cost: one read of the scores (a
    sample brackets the threshold; two reads where it misled), one write of the mask, no sort. On a
    GPU (unconfirmed): two reads, six where the sample misled, and one more where only some of
    those equal to the threshold are kept; no synchronisation.
    """
    return topk_op(scores, k, among)


def topk_bits(scores: Tensor, k: int, among: Tensor | None = None) -> Tensor:
    """The mask of :func:`topk` as :func:`pack_bits` packs it, an eighth of the bytes.

    Args:
        scores: any shape, float32 or float64, as for :func:`topk`.
        k: how many to keep, at most the number of candidates.
        among: uint8 ``[ceil(numel / 8)]``, the candidates' bits; None means all.

    Returns:
        uint8 ``[ceil(numel / 8)]`` with exactly ``k`` bits set.

    Raises:
        TypeError, ValueError: dtype, shape or device of an argument; ``k`` out of range.
        RuntimeError: fewer candidates than ``k``; on a GPU as for :func:`topk`.

    Gradients: none. Deterministic, for any number of threads. Cost: that of :func:`topk`.
    """
    return topk_bits_op(scores, k, among)
