"""Suite `torch_sparse`: torch's own block-sparse and compressed-row products, over cuBLAS.

What a user has without this package: `W` as a torch BSR tensor (Triton underneath, forward only) or
as a torch CSR tensor (cuSPARSE). The dense product has all of the weights, for zeros save power and
so time.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.gpu.semi_structured import checked
from bench.gpu.session import Case, Comparison, Maker, Measure, Run, Session, Work
from bench.gpu.shapes import Shape, flops
from sparsekern.ops import bsr

SHAPE, TINY_SHAPE = (8192, 4096, 4096), (32, 64, 64)
BLOCKS, TINY_BLOCKS = (128, 64, 32, 16), (16,)
BLOCK_DENSITIES = (0.1, 0.2)
ROW_DENSITIES = (0.1, 0.05, 0.02, 0.01, 0.001)


def cases(tiny: bool) -> Iterator[Case]:
    """Blocks, then rows."""
    shape = TINY_SHAPE if tiny else SHAPE
    for side in TINY_BLOCKS if tiny else BLOCKS:
        for density in BLOCK_DENSITIES:
            yield Case(f"bsr {side} at {density}", _blocks(shape, side, density))
    for density in ROW_DENSITIES[:1] if tiny else ROW_DENSITIES:
        yield Case(f"csr at {density}", _rows(shape, density))


def block_mask(shape: tuple[int, int], side: int, density: float, device: torch.device) -> Tensor:
    """A random mask of whole blocks with that density, to one block."""
    count = round(density * shape[0] * shape[1] / side**2)
    return bsr.block_topk(torch.rand(shape, device=device), count, (side, side))


def torch_bsr(x: Tensor, weight: Tensor, side: int) -> Run:
    """``x W'`` by torch's own Triton kernel, or by what the CPU has."""
    stored = weight.to_sparse_bsr((side, side))
    if not x.is_cuda:
        return lambda: F.linear(x, stored)
    from torch.sparse._triton_ops import bsr_dense_addmm

    start = x.new_zeros(weight.shape[0], x.shape[0])
    return lambda: bsr_dense_addmm(start, stored, x.t(), beta=0).t()


def torch_csr(x: Tensor, weight: Tensor) -> Run:
    """``x W'`` by cuSPARSE, or by what the CPU has."""
    stored = weight.to_sparse_csr()
    return lambda: (stored @ x.t()).t()


def _blocks(shape: Shape, side: int, density: float) -> Measure:
    def measure(session: Session) -> None:
        m, n, k = shape
        kept = block_mask((n, k), side, density, session.device)
        dtype = torch.bfloat16 if session.device.type == "cuda" else torch.float32
        x = torch.randn(m, k, device=session.device).to(dtype)
        dense = torch.randn(n, k, device=session.device).to(dtype)
        weight = dense * kept
        right = F.linear(x, weight)
        makers: dict[str, Maker] = {
            "dense": lambda: lambda: F.linear(x, dense),
            "torch_bsr": lambda: checked(torch_bsr(x, weight, side), right),
        }
        session.compare(_what(shape, density, dtype, f"{side}x{side}"), makers)

    return measure


def _rows(shape: Shape, density: float) -> Measure:
    def measure(session: Session) -> None:
        m, n, k = shape
        for dtype in (torch.float32, torch.bfloat16):
            x = torch.randn(m, k, device=session.device).to(dtype)
            kept = torch.rand(n, k, device=session.device) < density
            dense = torch.randn(n, k, device=session.device).to(dtype)
            weight = dense * kept
            right = F.linear(x, weight)
            makers: dict[str, Maker] = {
                "dense": lambda x=x, w=dense: lambda: F.linear(x, w),
                "torch_csr": lambda x=x, w=weight, r=right: checked(torch_csr(x, w), r),
            }
            session.compare(_what(shape, density, dtype, "unstructured"), makers)

    return measure


def _what(shape: Shape, density: float, dtype: torch.dtype, pattern: str) -> Comparison:
    name = str(dtype).removeprefix("torch.")
    fields = {"op": "linear", "pass": "forward", "shape": list(shape), "dtype": name}
    useful = {"dense": 1.0, "torch_bsr": density, "torch_csr": density}
    works = {each: Work(flops=flops(shape) * part) for each, part in useful.items()}
    return Comparison({**fields, "pattern": pattern, "density": density}, works, seconds=0.2)
