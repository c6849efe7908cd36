"""``mask_topk_rows``: keep the largest scores of every row."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from sparsekern._checks import check_device, check_dtype, check_shape, check_tensor
from sparsekern.kernels.launch import Launcher
from sparsekern.ops._define import Cost, Sample, define_op

WIDEST = 2**31 - 2**13  # columns: a tile of scores behind the last one is still an int32
INFINITIES = {"nan": -torch.inf, "posinf": torch.inf, "neginf": -torch.inf}


def _reference(scores: Tensor, counts: Tensor, among: Tensor | None = None) -> Tensor:
    usable = torch.ones_like(scores, dtype=torch.bool) if among is None else among
    if bool((counts < 0).any()) or bool((counts > usable.sum(1)).any()):
        raise RuntimeError(
            "Expected counts to be between 0 and the number of candidates of each row. "
            f"Got {counts.tolist()}."
        )
    # Stable sorts: by score, numbers before NaN, candidates first.
    order = torch.argsort(scores.nan_to_num(**INFINITIES), dim=1, descending=True, stable=True)
    for last in (scores.isnan(), ~usable):
        behind = last.gather(1, order).to(torch.uint8)
        order = order.gather(1, torch.argsort(behind, dim=1, stable=True))
    rank = torch.arange(scores.shape[1], device=scores.device).expand_as(order)
    return torch.zeros_like(usable).scatter(1, order, rank < counts[:, None])


def _check(scores: Tensor, counts: Tensor, among: Tensor | None = None) -> None:
    check_tensor(scores, "scores", ndim=2)
    check_dtype(scores, "scores", (torch.float32, torch.float64))
    check_tensor(counts, "counts")
    check_dtype(counts, "counts", (torch.int64,))
    check_shape(counts, "counts", (scores.shape[0],))
    check_device(counts, "counts", scores.device, "scores")
    if among is not None:
        check_tensor(among, "among")
        check_dtype(among, "among", (torch.bool,))
        check_shape(among, "among", tuple(scores.shape))
        check_device(among, "among", scores.device, "scores")


def _samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(40, 50, generator=generator).to(device, dtype)
    uneven = torch.arange(40, device=device)
    for name, counts in (("none", uneven * 0), ("some", uneven), ("all", uneven * 0 + 50)):
        yield Sample((scores, counts, None), name, small=True)
    among = scores > 0.5
    yield Sample((scores, among.sum(1), among), "among_all")
    yield Sample((scores, among.sum(1) // 2, among), "among")
    yield Sample((scores.t(), uneven.new_full((50,), 7), None), "strided")
    yield Sample((scores, uneven, among.t().contiguous().t() | True), "among_strided")
    yield Sample((torch.zeros_like(scores), uneven, None), "all_equal")
    few = (torch.arange(2000, device=device) % 3).to(dtype).view(40, 50)
    yield Sample((few, uneven.flip(0) // 2, few > 0), "ties")
    nan, inf = float("nan"), float("inf")
    odd = torch.tensor([[nan, -inf, inf, 0.0, nan, -0.0, inf]] * 8, device=device, dtype=dtype)
    yield Sample((odd, torch.arange(8, device=device), None), "not_finite", small=True)
    for shape in ((0, 5), (3, 0), (1, 1)):
        empty = torch.zeros(shape, device=device, dtype=dtype)
        yield Sample((empty, uneven.new_zeros(shape[0]), None), f"{shape[0]}x{shape[1]}")
    long = torch.randn(300, 3000, generator=generator).to(device, dtype)
    yield Sample((long, torch.full((300,), 300, device=device), None), "typical")
    narrow = torch.randn(3000, 9, generator=generator).to(device, dtype)
    yield Sample((narrow, torch.full((3000,), 2, device=device), narrow < 1e9), "narrow")
    wide = torch.randn(3, 9001, generator=generator).round(decimals=1).to(device, dtype)
    yield Sample((wide, uneven[:3] * 4500, None), "wide")
    yield Sample((wide[:, 2:], uneven[:3] + 999, wide[:, 2:] > -1), "wide_among")
    yield from _few_samples(device, dtype, generator)


def _few_samples(
    device: torch.device, dtype: torch.dtype, generator: torch.Generator
) -> Iterator[Sample]:
    """Few of long rows, whose threshold is guessed from a sample."""
    scores = torch.randn(26, 600, generator=generator).to(device, dtype)
    few = torch.arange(26, device=device) * 3
    yield Sample((scores, few, None), "few")
    yield Sample((scores[:, :593], few, scores[:, :593] > 0), "few_among")
    yield Sample((scores.round(), few, scores > 0.4), "few_ties")
    yield Sample((scores.clamp(max=1), few, None), "few_largest_tie")
    nan, inf = float("nan"), float("inf")
    yield Sample((torch.where(scores < 1.2, nan, scores), few, None), "few_numbers")
    yield Sample((torch.where(scores < 1.2, -inf, inf), few, scores < 1.5), "few_infinities")
    # The sample sees the largest column of each 16, or the smallest: it misleads.
    period = torch.arange(600, device=device) % 16 == 0
    yield Sample((scores + 9.0 * period, few, None), "few_sampled_high")
    yield Sample((scores - 9.0 * period, few, None), "few_sampled_low")


def _errors() -> Iterator[tuple[tuple[Any, ...], type[Exception], str]]:
    scores, counts = torch.zeros(2, 3), torch.ones(2, dtype=torch.int64)
    yield (scores.long(), counts, None), TypeError, "Expected scores to have dtype"
    yield (scores[0], counts, None), ValueError, "Expected scores to have 2 dimensions"
    yield (scores, counts.int(), None), TypeError, "Expected counts to have dtype torch.int64"
    yield (scores, counts[:1], None), ValueError, "Expected counts to have shape (2,)"
    yield (scores, counts, [True]), TypeError, "Expected among to be a tensor. Got list"
    yield (scores, counts, scores[:1] > 0), ValueError, "Expected among to have shape"
    sentence = "Expected counts to be between 0 and the number of candidates of each row"
    yield (scores, counts * 4, None), RuntimeError, sentence
    yield (scores, -counts, None), RuntimeError, sentence
    yield (scores, counts, scores > 0), RuntimeError, sentence


def _cost(scores: Tensor, counts: Tensor, among: Tensor | None = None) -> Cost:
    read = scores.nbytes + counts.nbytes + (0 if among is None else among.nbytes)
    return Cost(0, read, scores.numel())


def _limits(scores: Tensor, counts: Tensor, among: Tensor | None = None) -> str | None:
    if scores.dtype != torch.float32:
        return f"the kernels order 32 bits. Got scores of {scores.dtype}."
    if scores.shape[1] >= WIDEST:
        return f"the kernels take fewer than {WIDEST} columns. Got {scores.shape[1]}."
    return None


topk_rows_op = define_op(
    "mask_topk_rows(Tensor scores, Tensor counts, Tensor? among=None) -> Tensor",
    reference=_reference,
    check=_check,
    fake=lambda scores, counts, among=None: scores.new_empty(scores.shape, dtype=torch.bool),
    setup=None,
    backward="a mask has no gradient.",
    samples=_samples,
    errors=_errors,
    cost=_cost,
    triton=Launcher("mask.topk_rows", "topk_rows", _limits),
)


def topk_rows(scores: Tensor, counts: int | Tensor, among: Tensor | None = None) -> Tensor:
    """The mask of the ``counts[r]`` largest scores of each row; of equal ones, the first.

    Args:
        scores: ``[O, I]``, or ``[O, ...]`` whose rows are flattened; float32 or float64. NaN ranks
            below everything, ``-0.0`` equals ``0.0``.
        counts: how many to keep in a row, at most the number of its candidates: int64 ``[O]``, or
            one number for all rows.
        among: bool of the shape of ``scores``, the candidates; None means all.

    Returns:
        bool of the shape of ``scores``.

    Raises:
        TypeError, ValueError: dtype, shape or device of an argument.
        RuntimeError: fewer candidates in a row than its count, or a count below 0. On a GPU the
            host does not wait to learn that: all candidates or none are kept, unless
            SPARSEKERN_DEBUG=1 asks for the error.

    Gradients: none. Deterministic, for any number of threads. Cost: two to four reads of a row's
    scores, which is in the cache then, one write of the mask.
    """
    check_tensor(scores, "scores")
    if not isinstance(counts, Tensor):
        counts = torch.full(scores.shape[:1], counts, dtype=torch.int64, device=scores.device)
    if scores.ndim <= 2:
        return topk_rows_op(scores, counts, among)
    rows = None if among is None else among.flatten(1)
    return topk_rows_op(scores.flatten(1), counts, rows).view(scores.shape)
