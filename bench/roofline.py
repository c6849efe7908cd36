"""What this machine can do at most, measured in the same run as the kernels."""

from __future__ import annotations

import ctypes
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass

import torch

from sparsekern._extension import native


@dataclass(frozen=True)
class Ceilings:
    """Rates over all of torch's threads: GFLOP/s, and GB/s read plus written."""

    fma_gflops: float
    fma_from_l1_gflops: float
    copy_gbps: float

    def row(self) -> dict[str, float]:
        return {key: round(value, 1) for key, value in asdict(self).items()}


def measure() -> Ceilings:
    """The median of five short measurements of each ceiling."""
    return Ceilings(_fma(from_memory=False), _fma(from_memory=True), _copy())


def _fma(from_memory: bool) -> float:
    if not native.loaded:
        return float("nan")
    peak = ctypes.CDLL(str(native.path)).sparsekern_peak
    peak.restype = ctypes.c_int64
    peak.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.POINTER(ctypes.c_float)]
    threads = torch.get_num_threads()

    def one_thread(_: int) -> int:  # ctypes releases the interpreter lock while the loop runs
        return int(peak(int(from_memory), 200_000, ctypes.byref(ctypes.c_float(0.0))))

    rates = []
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(6):
            start = time.perf_counter()
            flops = sum(pool.map(one_thread, range(threads)))
            rates.append(flops / (time.perf_counter() - start) / 1e9)
    return sorted(rates[1:])[2]


def _copy() -> float:
    source = torch.ones(1 << 25)
    target = torch.empty_like(source)
    rates = []
    for _ in range(6):
        start = time.perf_counter()
        target.copy_(source)
        rates.append(2 * source.nbytes / (time.perf_counter() - start) / 1e9)
    return sorted(rates[1:])[2]
