"""Suite `csr`: unstructured layers at 1 % and 0.1 % of their weights, over dense ones.

Every kernel that the format can run, and its own choice ("auto"); torch's CSR product has no
gradient of its values, so it stands in the forward rows alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from bench.gpu.session import Case, Comparison, Maker, Measure, Run, Session, Work
from bench.gpu.shapes import flops
from bench.gpu.torch_sparse import torch_csr
from bench.timing import forward_backward_call, forward_call
from sparsekern.nn import SparseLinear

OPS = ("csr_linear", "csr_linear_backward", "csr_to_dense", "csr_gather")
DENSITIES = (0.01, 0.001)
SHAPES, TINY_SHAPES = ((8192, 4096, 4096), (512, 4096, 4096)), ((32, 64, 64),)


def cases(tiny: bool) -> Iterator[Case]:
    """Both densities of each dtype, large batch first."""
    for shape, dtype in itertools.product(TINY_SHAPES if tiny else SHAPES, ("bfloat16", "float32")):
        for density in DENSITIES:
            yield Case(f"{shape} {dtype} at {density}", _compare(shape, dtype, density))


def _compare(shape: tuple[int, int, int], dtype: str, density: float) -> Measure:
    def measure(session: Session) -> None:
        rows, fan_out, fan_in = shape
        kind = getattr(torch, dtype)
        dense = nn.Linear(fan_in, fan_out, device=session.device, dtype=kind)
        mask = torch.rand(fan_out, fan_in, device=session.device) < density
        x = torch.randn(rows, fan_in, device=session.device).to(kind)
        grad = torch.randn(rows, fan_out, device=session.device).to(kind)

        def sparse(variant: str) -> nn.Module:
            layer = SparseLinear.from_dense(dense, mask=mask, format="csr")
            layer.format.variant = variant
            return layer

        names = ("auto", *sparse("auto").format.variants)
        for which in ("forward", "forward_backward"):

            def call(layer: nn.Module, which: str = which) -> Run:
                if which == "forward":
                    return forward_call(layer, x)
                return forward_backward_call(layer, x, grad)

            makers: dict[str, Maker] = {
                "dense": lambda call=call: call(dense),
                "dense_again": lambda call=call: call(dense),
            }
            for name in names:
                makers[f"sparsekern_csr_{name}"] = lambda call=call, name=name: call(sparse(name))
            if which == "forward":
                makers["torch_csr"] = lambda: torch_csr(x, _kept(dense.weight, mask))
            fields = {"op": "linear", "pass": which, "shape": list(shape), "dtype": dtype}
            parts = {name: 1.0 if name.startswith("dense") else density for name in makers}
            passes = 1 if which == "forward" else 3
            works = {n: Work(flops=passes * flops(shape) * part) for n, part in parts.items()}
            shown = {**fields, "pattern": "unstructured", "density": density}
            session.compare(Comparison(shown, works, rival="torch_csr"), makers)

    return measure


def _kept(weight: Tensor, mask: Tensor) -> Tensor:
    return weight.detach() * mask
