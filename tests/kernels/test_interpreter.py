"""Every Triton kernel against the oracle of its op, under Triton's interpreter."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from sparsekern import ops
from sparsekern.ops import OPS
from tests.background import BACKGROUND, Command

pytest.importorskip("triton", reason="triton is not installed")

_ = ops
CONTRACT = Path(__file__).parent.parent / "ops" / "test_contract.py"
TESTS = "matches_the_oracle"  # run twice, one thread gives the same bits
FAMILIES = sorted({op.triton.module.split(".")[2] for op in map(OPS.__getitem__, OPS) if op.triton})


def contract(family: str) -> Command:
    """The contract suite of a family where Triton runs on the CPU."""
    arguments = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
    environment = {
        "TRITON_INTERPRET": "1",
        "SPARSEKERN_NATIVE": "0",
        "SPARSEKERN_TEST_FAMILY": f"{family}_",
    }
    return Command([*arguments, str(CONTRACT), "-k", TESTS], environment)


@pytest.mark.background(command=contract)
@pytest.mark.parametrize("family", FAMILIES)
def test_contract_under_the_interpreter(family: str, request: pytest.FixtureRequest) -> None:
    """In a process of its own."""
    code, output = BACKGROUND.result(request.node.nodeid)
    assert code == 0, output
