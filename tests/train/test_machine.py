"""What this machine is and which kernels run here."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import sparsekern
from sparsekern._extension import CudaLibrary, cuda, native
from sparsekern.kernels.launch import reason_on
from sparsekern.ops import OPS
from sparsekern.train import machine
from sparsekern.train.machine import gpu_facts, machine_name, native_facts, op_facts, versions


def test_versions():
    found = versions()
    assert found["torch"] == torch.__version__
    assert found["sparsekern"] == sparsekern.__version__
    assert found["threads"] == torch.get_num_threads()
    assert found["isa"] == native.isa
    assert found["machine"] == machine_name()
    assert f"{os.cpu_count()} cores" in machine_name()


def test_every_op_has_exactly_one_choice():
    facts = op_facts(torch.device("cpu"))
    assert list(dict.fromkeys(row.op for row in facts)) == list(OPS)
    for name in OPS:
        chosen = [row for row in facts if row.op == name and row.chosen]
        assert len(chosen) == 1
        assert chosen[0].reason is None
        variants = [row.variant for row in facts if row.op == name]
        if OPS[name].select is not None:
            assert variants == list(OPS[name].variants)


def test_native_library_or_the_reason():
    facts = native_facts()
    if native.loaded:
        assert facts["native library"] == str(native.path)
        assert facts["instruction set in use"] == native.isa
    else:
        assert facts["native library"].startswith("none: ")


def test_without_native_code():
    program = (
        "import torch\n"
        "from sparsekern.train.machine import native_facts, op_facts\n"
        "assert native_facts()['native library'] == 'none: SPARSEKERN_NATIVE=0 is set.'\n"
        "chosen = {row.variant for row in op_facts(torch.device('cpu')) if row.chosen}\n"
        "assert chosen == {'reference'}\n"
    )
    environment = {**os.environ, "SPARSEKERN_NATIVE": "0"}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True, timeout=120)


def test_no_gpu_is_explained():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    facts = gpu_facts()
    assert facts["CUDA devices"] == "none: torch sees no CUDA device."
    assert facts["CUDA library"] == f"none: {cuda.reason}" or cuda.loaded
    assert "not used: " in facts["Triton"] or facts["Triton"] == "none: triton is not installed."


def test_gpus_are_listed(monkeypatch: pytest.MonkeyPatch):
    """Pretended ones."""
    library = CudaLibrary(path=Path("lib/libsparsekern_cuda.so"), build="nvcc 13.0 for 80")
    monkeypatch.setattr(machine, "cuda", library)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda i: f"GPU {i}")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    reason_on.cache_clear()
    try:
        facts = gpu_facts()
    finally:
        reason_on.cache_clear()
    assert facts["CUDA library"] == "lib/libsparsekern_cuda.so"
    assert facts["CUDA library built by"] == "nvcc 13.0 for 80"
    assert (facts["cuda:0"], facts["cuda:1"]) == tuple(f"GPU {i}, capability 7.5" for i in (0, 1))
    assert "CUDA devices" not in facts
    if facts["Triton"] != "none: triton is not installed.":
        assert facts["Triton"].endswith(
            "not used: Triton kernels need compute capability 8.0. Got 7.5."
        )
