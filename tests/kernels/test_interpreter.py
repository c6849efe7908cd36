"""Every Triton kernel against the oracle of its op, under Triton's interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sparsekern import ops
from sparsekern.ops import OPS

pytest.importorskip("triton", reason="triton is not installed")

_ = ops
CONTRACT = Path(__file__).parent.parent / "ops" / "test_contract.py"
FAMILIES = sorted({op.triton.module.split(".")[2] for op in map(OPS.__getitem__, OPS) if op.triton})


@pytest.mark.parametrize("family", FAMILIES)
def test_contract_under_the_interpreter(family: str) -> None:
    """The contract suite in a process of its own, where Triton runs on the CPU."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "SPARSEKERN_NATIVE": "0"}
    tests = "(matches_the_oracle or twice_and_any_threads)"
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(CONTRACT)]
    command += ["-k", f"{family}_ and {tests}"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-3000:]
