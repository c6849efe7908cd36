"""The files of the CUDA ops, compiled for the host in place of the CPU's: what unpacks, checks and
cuts arguments, besides the device code, passes the contract of every op.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.cuda.on_host import COMPILER

ROOT = Path(__file__).resolve().parent.parent.parent
TORCH = Path(torch.__file__).parent
SOURCES = sorted((ROOT / "csrc" / "cuda").glob("*/*.cu"))

pytestmark = [
    pytest.mark.device_code,
    pytest.mark.skipif(COMPILER is None, reason="no C++ compiler"),
]

RUN = """
import sys, torch
library, *arguments = sys.argv[1:]
torch.ops.load_library(library)
for op in ("update_masked_adamw_", "update_masked_sgd_", "update_masked_norm"):
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"sparsekern::{op}", "CPU")
import pytest
sys.exit(pytest.main(arguments))
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    built = tmp_path_factory.mktemp("host") / "ops.so"
    assert COMPILER is not None
    command = [COMPILER, "-std=c++17", "-O1", "-fPIC", "-shared", "-x", "c++", "-Wall", "-Wextra"]
    command += ["-Werror", "-Wno-unknown-pragmas", "-fsanitize=undefined"]
    command += ["-fno-sanitize-recover=all", "-fno-sanitize=vptr"]
    command += ["-DTORCH_TARGET_VERSION=0x020a000000000000", "-isystem", str(TORCH / "include")]
    command += [*map(str, SOURCES), "-o", str(built)]
    command += [f"-L{TORCH / 'lib'}", "-Wl,--no-as-needed", "-ltorch", "-ltorch_cpu"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return built


@pytest.mark.parametrize(
    ("arguments", "least"),
    [
        (("tests/ops/test_contract.py", "-k", "update_ and not compiled"), 500),
        (("tests/ops/update", "tests/optim", "-m", "not gpu"), 200),
    ],
    ids=["contract", "optimisers"],
)
def test_passes(library: Path, arguments: tuple[str, ...], least: int) -> None:
    environment = {**os.environ, "SPARSEKERN_NATIVE": "0"}
    command = [sys.executable, "-c", RUN, str(library), "-q", "-x", "-p", "no:cacheprovider"]
    command += arguments
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    assert int(re.findall(r"(\d+) passed", done.stdout)[-1]) > least
