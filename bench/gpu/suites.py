"""What can be measured on a GPU, in the order of its value."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from bench.gpu import (
    block,
    ceilings,
    csr,
    masked_adamw,
    never_slower,
    semi_structured,
    step,
    topk,
    torch_sparse,
)
from bench.gpu.session import Case


@dataclass(frozen=True)
class Suite:
    """A suite's cases, and the ops of ours whose contract must hold before they are timed."""

    cases: Callable[[bool], Iterator[Case]]
    ops: tuple[str, ...] = ()


CEILINGS = {
    "ceilings": Suite(ceilings.cases),
    "semi_structured": Suite(semi_structured.cases),
    "torch_sparse": Suite(torch_sparse.cases),
}
SUITES = {
    "masked_adamw": Suite(masked_adamw.cases, masked_adamw.OPS),
    "block": Suite(block.cases, block.OPS),
    "topk": Suite(topk.cases, topk.OPS),
    "step": Suite(step.cases, step.OPS),
    "csr": Suite(csr.cases, csr.OPS),
    "never_slower": Suite(never_slower.cases, never_slower.OPS),
}
ALL = {**CEILINGS, **SUITES}
