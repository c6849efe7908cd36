"""Every registered op and variant under pytest-benchmark: `make bench-kernels`.

`python -m pytest bench/test_kernels.py --benchmark-only -k csr_linear` times some of them; the
rows carry the operations and bytes that the op's `cost` says it must do at least. For numbers to
compare or publish take `make bench`, whose contenders take turns in one process.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from bench.kernel_samples import sample
from sparsekern.ops import OPS, Op
from sparsekern.testing import devices, has_gradient, leaves, tensors

REFERENCE = "reference"


class Case(NamedTuple):
    op: str
    variant: str
    which: str  # forward or forward_backward
    device: torch.device

    def __str__(self) -> str:
        return f"{self.op}-{self.variant}-{self.which}-{self.device.type}"


def cases() -> Iterator[Case]:
    """Every op with each of its variants, forward and (where there is a gradient) backward."""
    for name in OPS:
        op = OPS[name]
        for device in devices():
            for variant in op.variants or ("auto", REFERENCE):
                yield Case(name, variant, "forward", device)
                if has_gradient(op):
                    yield Case(name, variant, "forward_backward", device)


def _call(op: Op, variant: str, args: list[Any], kwargs: dict[str, Any]) -> tuple[Tensor, ...]:
    if op.variants:
        return tensors(op(*args, variant=variant, **kwargs))
    return tensors((op.reference if variant == REFERENCE else op)(*args, **kwargs))


@pytest.mark.parametrize("case", list(cases()), ids=str)
def test_kernel(case: Case, benchmark: Any) -> None:
    """One op, one variant, one pass."""
    torch.manual_seed(0)
    op = OPS[case.op]
    chosen = sample(op, case.device)
    if case.variant in op.variants:
        reason = op.variants[case.variant].supports(*chosen.args, **chosen.kwargs)
        if reason is not None:
            pytest.skip(reason)
    backward = case.which == "forward_backward"
    args = leaves(chosen.args, backward)
    inputs = [a for a in args if isinstance(a, Tensor) and a.requires_grad]
    synchronize = torch.cuda.synchronize if case.device.type == "cuda" else None

    def run() -> None:
        outputs = _call(op, case.variant, args, chosen.kwargs)
        if backward:
            torch.autograd.grad(outputs, inputs, grads, allow_unused=True)
        if synchronize is not None:
            synchronize()

    with torch.set_grad_enabled(backward):
        outputs = _call(op, case.variant, args, chosen.kwargs)
        grads = [torch.randn_like(output) for output in outputs] if backward else []
        cost = op.cost(*chosen.args, **chosen.kwargs)
        benchmark.group = f"{case.op} {case.which} {case.device.type}"
        benchmark.extra_info.update(
            variant=case.variant,
            sample=chosen.id,
            threads=torch.get_num_threads(),
            forward_flops=cost.flops,
            forward_bytes_read=cost.bytes_read,
            forward_bytes_written=cost.bytes_written,
        )
        benchmark(run)
