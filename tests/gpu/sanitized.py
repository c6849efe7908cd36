"""`python -m tests.gpu.sanitized DEVICE`: a few calls of every op, for compute-sanitizer to watch.

Forward and backward of the small samples and the typical one, in float32 and bfloat16, with every
kernel that runs on the device.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import torch

from sparsekern import ops
from sparsekern.ops import OPS, Op, Sample
from sparsekern.testing import has_gradient, leaves, run_with_gradients

_ = ops
DTYPES = (torch.float32, torch.bfloat16)
MOST = 6  # samples of an op and dtype: sanitizers are slow


def samples(op: Op, device: torch.device, dtype: torch.dtype) -> list[Sample]:
    """The typical sample and a few small ones that the op accepts."""
    found = [s for s in op.samples(device, dtype) if s.small or s.id == "typical"]
    chosen = sorted(found, key=lambda each: each.id != "typical")[:MOST]
    return [each for each in chosen if accepts(op, each)]


def accepts(op: Op, sample: Sample) -> bool:
    """Whether the op takes the sample's dtype."""
    try:
        op.check(*sample.args, **sample.kwargs)
    except TypeError:
        return False
    return True


def calls(device: torch.device) -> Iterator[tuple[Op, Sample, dict[str, str]]]:
    """Every op, its samples, and the kernel's name where there is a choice."""
    for op in (OPS[name] for name in OPS):
        for dtype in DTYPES:
            for sample in samples(op, device, dtype):
                names = [n for n in op.variants if n not in ("reference", "dense")]
                for name in names:
                    if op.variants[name].supports(*sample.args, **sample.kwargs) is None:
                        yield op, sample, {"variant": name}
                if not op.variants:
                    yield op, sample, {}


def main(name: str) -> int:
    """Makes the calls; how many."""
    device, count = torch.device(name), 0
    for op, sample, options in calls(device):
        if has_gradient(op):
            run_with_gradients(op, sample, leaves(sample.args, True), **options)
        else:
            op(*leaves(sample.args, False), **sample.kwargs, **options)
        count += 1
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return count


if __name__ == "__main__":
    sys.exit(0 if main(sys.argv[1]) else 1)
