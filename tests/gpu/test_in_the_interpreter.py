"""The module tests of this folder once more where Triton's interpreter runs the kernels."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="triton is not installed")

HERE = Path(__file__).resolve().parent


@pytest.mark.slow
def test_modules_on_triton_kernels() -> None:
    """In float32 and float16: the interpreter computes nonsense in bfloat16."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "SPARSEKERN_NATIVE": "0"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
    command += [str(HERE / "test_modules.py"), "-k", "not bfloat16 and not cuda"]
    result = subprocess.run(command, cwd=HERE.parents[1], env=environment, capture_output=True)
    assert result.returncode == 0, result.stdout.decode()[-3000:]
