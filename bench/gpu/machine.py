"""What the device can do at most, measured in the process that measures the kernels."""

from __future__ import annotations

import torch

from bench.gpu.session import Ceilings, Run
from bench.gpu.stopwatch import Stopwatch
from bench.timing import interleave


def measure(device: torch.device, tiny: bool) -> Ceilings:
    """Copy bandwidth over 1 GiB, and the rate of a bfloat16 product of 8192 cubed."""
    return Ceilings(
        copy_gbps(device, 1 << (16 if tiny else 30)),
        product_tflops(device, 64 if tiny else 8192, torch.bfloat16),
    )


def copy_gbps(device: torch.device, size: int) -> float:
    """GB/s read plus written of a copy of ``size`` bytes."""
    source = torch.ones(size // 4, device=device)
    target = torch.empty_like(source)
    seconds = _seconds(device, lambda: target.copy_(source))
    return 2 * source.nbytes / seconds / 1e9


def product_tflops(device: torch.device, side: int, dtype: torch.dtype) -> float:
    """TFLOP/s of torch's product of two random square matrices."""
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return 2 * side**3 / _seconds(device, lambda: a @ b) / 1e12


def _seconds(device: torch.device, run: Run) -> float:
    watch = Stopwatch(device, cold=False, ahead=True)
    return interleave({"it": run}, 0.05, watch)["it"].p50
