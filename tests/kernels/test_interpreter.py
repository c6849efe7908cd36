"""Every Triton kernel against the oracle of its op, under Triton's interpreter."""

from __future__ import annotations

import pytest

from sparsekern import ops
from sparsekern.ops import OPS
from tests.kernels.interpreted import INTERPRETED

pytest.importorskip("triton", reason="triton is not installed")

_ = ops
FAMILIES = sorted({op.triton.module.split(".")[2] for op in map(OPS.__getitem__, OPS) if op.triton})


@pytest.mark.parametrize("family", FAMILIES)
def test_contract_under_the_interpreter(family: str) -> None:
    """The contract suite in a process of its own, where Triton runs on the CPU."""
    code, output = INTERPRETED.result(family)
    assert code == 0, output
