"""Suite `semi_structured`: 2:4 sparsity as torch has it, over cuBLAS.

`y = x W'` with 2:4 `W`; the dense product has all of the weights, for zeros save power and so time.
cuSPARSELt multiplies from the left, `W x'`, whose transpose is `y` column-major: every algorithm
number that it accepts is a row, and the one that its own search picks, which is also asked for `y`
row-major. Numbers whose result is wrong (pytorch/pytorch#155333) are rows without a time.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.gpu.session import Case, Comparison, Maker, Measure, Run, Session, Work, WrongResultError
from bench.gpu.shapes import Shape, flops, products

MOST_ALGORITHMS = 64  # far more than there are: the first refusal ends the list
TOLERANCE = 2e-2  # relative, of the whole result: bfloat16 rounds at 4e-3


def cases(tiny: bool) -> Iterator[Case]:
    """cuSPARSELt on every shape, then torch's tensor subclasses."""
    for shape in products(tiny):
        yield Case(f"cuSPARSELt {shape}", _cusparselt(shape))
    for shape in products(tiny):
        yield Case(f"torch {shape}", _torch(shape))


def two_of_four(weight: Tensor) -> Tensor:
    """The weight with the two smaller of each four in a row set to zero."""
    groups = weight.unflatten(1, (-1, 4))
    kept = groups.abs().argsort(2).argsort(2) >= 2
    return (groups * kept).flatten(1)


def _operands(session: Session, shape: Shape) -> tuple[Tensor, Tensor, Tensor]:
    """Input, dense weight and 2:4 weight."""
    m, n, k = shape
    x, dense = (torch.randn(side, k, device=session.device).bfloat16() for side in (m, n))
    return x, dense, two_of_four(dense)


def check(got: Tensor, right: Tensor) -> None:
    """Raises WrongResultError unless the results are equal to rounding."""
    error = float((got.float() - right.float()).norm() / right.float().norm())
    if not error < TOLERANCE:
        raise WrongResultError(f"relative error {error:.2g}")


def checked(run: Run, right: Tensor) -> Run:
    """``run``, once its result has been compared."""
    check(run(), right)
    return run


def _what(shape: Shape, names: list[str]) -> Comparison:
    fields = {"op": "linear", "pass": "forward", "shape": list(shape), "dtype": "bfloat16"}
    works = {name: Work(flops=flops(shape)) for name in names}  # as if dense
    return Comparison({**fields, "pattern": "2:4", "density": 0.5}, works, seconds=0.05)


def _cusparselt(shape: Shape) -> Measure:
    def measure(session: Session) -> None:
        x, dense, weight = _operands(session, shape)
        right = F.linear(x, weight)
        makers: dict[str, Maker] = {"dense": lambda: lambda: F.linear(x, dense)}
        packed = torch._cslt_compress(weight)
        best = torch._cslt_sparse_mm_search(packed, x.t())

        def algorithm(number: int, row_major: bool = False) -> Maker:
            def run() -> Tensor:
                options = {"alg_id": number, "transpose_result": row_major}
                y = torch._cslt_sparse_mm(packed, x.t(), **options)
                return y if row_major else y.t()

            return lambda: checked(run, right)

        makers |= {f"cusparselt_{i}": algorithm(i) for i in algorithms(packed, x)}
        makers["cusparselt_search"] = algorithm(best)
        makers["cusparselt_search_row_major"] = algorithm(best, row_major=True)
        times = session.compare(_what(shape, list(makers)), makers)
        ours = {name: each.p50 for name, each in times.items() if name != "dense"}
        if ours and "dense" in times:
            session.write(**_best(shape, ours, times["dense"].p50), searched=best)

    return measure


def algorithms(packed: Tensor, x: Tensor) -> list[int]:
    """The algorithm numbers that cuSPARSELt accepts for these operands."""
    found = []
    for number in range(MOST_ALGORITHMS):
        try:
            torch._cslt_sparse_mm(packed, x.t(), alg_id=number)
        except RuntimeError:
            break
        found.append(number)
    return found


def _best(shape: Shape, seconds: dict[str, float], dense: float) -> dict[str, object]:
    name = min(seconds, key=seconds.__getitem__)
    return {
        **_what(shape, []).fields,
        "variant": "cusparselt_best",
        "status": "measured",
        "algorithm": name,
        "p50_ms": round(seconds[name] * 1e3, 5),
        "dense_ms": round(dense * 1e3, 5),
        "speedup_over_dense": round(dense / seconds[name], 4),
    }


def _torch(shape: Shape) -> Measure:
    """The two tensor subclasses, and what it costs to make one of a dense weight."""
    from torch.sparse import (
        SparseSemiStructuredTensorCUSPARSELT,
        SparseSemiStructuredTensorCUTLASS,
    )

    kinds = {
        "torch_cutlass": SparseSemiStructuredTensorCUTLASS,
        "torch_cusparselt": SparseSemiStructuredTensorCUSPARSELT,
    }

    def measure(session: Session) -> None:
        x, dense, weight = _operands(session, shape)
        right = F.linear(x, weight)

        def product(kind: type) -> Maker:
            def make() -> Run:
                sparse = kind.from_dense(weight)
                return checked(lambda: F.linear(x, sparse), right)

            return make

        makers: dict[str, Maker] = {"dense": lambda: lambda: F.linear(x, dense)}
        makers |= {name: product(kind) for name, kind in kinds.items()}
        session.compare(_what(shape, list(makers)), makers)
        packing = _what(shape, [])
        packing.fields["pass"] = "pack"
        pack: dict[str, Maker] = {
            name: lambda kind=kind: lambda: kind.prune_dense_static_sort(weight)
            for name, kind in kinds.items()
        }
        session.compare(packing, pack)

    return measure
