"""What this machine is and which kernels run here."""

from __future__ import annotations

import os
import subprocess
import sys

import torch

import sparsekern
from sparsekern._extension import native
from sparsekern.ops import OPS
from sparsekern.train.machine import machine_name, native_facts, op_facts, versions


def test_versions():
    found = versions()
    assert found["torch"] == torch.__version__
    assert found["sparsekern"] == sparsekern.__version__
    assert found["threads"] == torch.get_num_threads()
    assert found["isa"] == native.isa
    assert found["machine"] == machine_name()
    assert f"{os.cpu_count()} cores" in machine_name()


def test_every_op_has_exactly_one_choice():
    facts = op_facts()
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
        "from sparsekern.train.machine import native_facts, op_facts\n"
        "assert native_facts()['native library'] == 'none: SPARSEKERN_NATIVE=0 is set.'\n"
        "assert {row.variant for row in op_facts() if row.chosen} == {'reference'}\n"
    )
    environment = {**os.environ, "SPARSEKERN_NATIVE": "0"}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True, timeout=120)
