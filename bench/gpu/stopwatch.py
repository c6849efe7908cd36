"""Time on a device: CUDA events around a call, the host's clock on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from bench.timing import wall_seconds

# What every timed call waits behind, so that the host has queued all of it before the GPU starts:
# about a millisecond of the clock of an H100.
HEAD_START_CYCLES = 2_000_000


class Stopwatch:
    """Takes the seconds of one call, as :func:`bench.timing.interleave` wants them.

    Args:
        device: "cuda" or the CPU.
        cold: empty the L2 cache before every call (single kernels; a training step has no use
            for it).
        ahead: let the host queue the whole call before the GPU starts, so that launches cost
            nothing: what the kernels take. Without it the gaps between launches count, as they do
            for a user.
    """

    def __init__(self, device: torch.device, *, cold: bool, ahead: bool) -> None:
        self.device, self.ahead = device, ahead
        self._cache: torch.Tensor | None = None
        if device.type == "cuda" and cold:
            size = 4 * torch.cuda.get_device_properties(device).L2_cache_size
            self._cache = torch.empty(max(size, 1 << 27), dtype=torch.int8, device=device)

    def __call__(self, run: Callable[[], Any]) -> float:
        if self.device.type != "cuda":
            return wall_seconds(run)
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(self.device)
        if self._cache is not None:
            self._cache.zero_()
        if self.ahead:
            torch.cuda._sleep(HEAD_START_CYCLES)
        start.record()
        run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3
