"""Every Triton kernel compiles for every architecture, as the ops' samples would launch it.

Part of ``make cuda-check``: needs Triton, no GPU and no CUDA toolkit.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from sparsekern import ops
from sparsekern.kernels.launch import INTERPRETING, Launch, recording
from sparsekern.ops import OPS, Op

pytest.importorskip("triton", reason="triton is not installed")
from tests.kernels.compiled import ARCHITECTURES, compile_launch, key_of

pytestmark = [
    pytest.mark.device_code,
    pytest.mark.skipif(INTERPRETING, reason="the interpreter compiles nothing"),
]
_ = ops
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
WITH_TRITON = [name for name in OPS if OPS[name].triton is not None]


def launches(op: Op) -> dict[str, Launch]:
    """One launch for each piece of machine code that the op's samples ask for."""
    assert op.triton is not None
    found: dict[str, Launch] = {}
    for args, kwargs in _calls(op):
        if op.triton.limits is None or op.triton.limits(*args, **kwargs) is None:
            with recording() as recorded:
                op.triton(*args, **kwargs)
            found.update({key_of(launch): launch for launch in recorded})
    return found


def _calls(op: Op) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    for dtype in DTYPES:
        for sample in op.samples(torch.device("cpu"), dtype):
            try:
                op.check(*sample.args, **sample.kwargs)
            except TypeError:
                break  # not a dtype of this op
            yield sample.args, sample.kwargs


@pytest.mark.parametrize("name", WITH_TRITON)
def test_compiles_without_spills(name: str) -> None:
    found = launches(OPS[name])
    assert found, "no sample launches a kernel"
    for key, launch in found.items():
        for architecture in ARCHITECTURES:
            built = compile_launch(launch, architecture)
            print(  # noqa: T201  (shown by `make cuda-check`)
                f"sm_{architecture}: {built.registers:3d} registers, "
                f"{built.shared_bytes:6d} bytes shared  {key}"
            )
            assert built.spilled_bytes == 0, f"sm_{architecture}: {key}"
