"""Suite `topk`: the mask of the largest tenth of 1e9 float32 scores, over torch.topk.

Its measure is `passes`: time over that of one read of the scores at copy bandwidth. As many scores
as fit are taken where 1e9 do not (with what torch.topk needs beside, about 32 bytes of each).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from bench.gpu.session import Case, Comparison, Maker, Measure, Run, Session, Work
from sparsekern.ops import mask as mask_ops

OPS = ("mask_topk", "mask_topk_bits")
SCORES, TINY_SCORES = 1_000_000_000, 10_000
BYTES_OF_A_SCORE = 32
KEPT = 0.1


def cases(tiny: bool) -> Iterator[Case]:
    """Ordinary scores, and a tensor with many equal ones."""
    count = TINY_SCORES if tiny else SCORES
    yield Case("normal scores", _topk(count, "normal"))
    yield Case("magnitudes with ties", _topk(count, "ties"))


def make_scores(count: int, kind: str, device: torch.device) -> Tensor:
    """Normal numbers, or their magnitudes rounded to a thousandth."""
    scores = torch.randn(count, device=device)
    return scores if kind == "normal" else scores.abs_().mul_(1000).round_()


def fitting(count: int, device: torch.device) -> int:
    """``count``, or as many as the free memory allows."""
    if device.type != "cuda":
        return count
    free, _ = torch.cuda.mem_get_info(device)
    return min(count, free // BYTES_OF_A_SCORE)


def by_topk(scores: Tensor, k: int) -> Run:
    """torch.topk and a scatter into the mask."""

    def run() -> Tensor:
        places = torch.topk(scores.view(-1), k, sorted=False).indices
        mask = torch.zeros(scores.numel(), dtype=torch.bool, device=scores.device)
        return mask.index_fill_(0, places, True)

    return run


def _topk(count: int, kind: str) -> Measure:
    def measure(session: Session) -> None:
        fits = fitting(count, session.device)
        scores = make_scores(fits, kind, session.device)
        k = round(KEPT * fits)
        makers: dict[str, Maker] = {
            "sparsekern": lambda: lambda: mask_ops.topk(scores, k),
            "sparsekern_bits": lambda: lambda: mask_ops.topk_bits(scores, k),
            "torch_topk": lambda: by_topk(scores, k),
        }
        works = {name: Work(bytes=scores.nbytes) for name in makers}
        fields = {"op": "mask_topk", "shape": [fits], "pattern": "unstructured", "density": KEPT}
        what = Comparison({**fields, "dtype": "float32", "scores": kind}, works, rival="torch_topk")
        times = session.compare(what, makers)
        if session.ceilings:
            one_pass = scores.nbytes / session.ceilings.copy_gbps / 1e9
            passes = {name: round(each.p50 / one_pass, 3) for name, each in times.items()}
            session.write(**what.fields, status="measured", passes=passes)

    return measure
