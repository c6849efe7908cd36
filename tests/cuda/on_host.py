"""The device code of the update ops, compiled by the host's compiler and called with tensors."""

from __future__ import annotations

import ctypes
import functools
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SOURCE = Path(__file__).parent / "update_on_host.cpp"
COMPILER = shutil.which("g++") or shutil.which("clang++")
# The order of csrc/common/dtype.h.
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


class HostTensor(ctypes.Structure):
    """One row of an update, as in ``update_on_host.cpp``."""

    _fields_ = [
        *[(name, ctypes.c_void_p) for name in ("param", "grad", "first", "second", "copy", "bits")],
        ("count", ctypes.c_int64),
        ("step", ctypes.c_void_p),
        ("step_is_double", ctypes.c_int32),
        *[(name, ctypes.c_int32) for name in ("dtype", "grad_dtype", "copy_is_half", "is_start")],
    ]


class Scalar(ctypes.Structure):
    """One number, as in ``table.cuh``."""

    _fields_ = [
        ("pointer", ctypes.c_void_p),
        ("value", ctypes.c_double),
        ("is_double", ctypes.c_bool),
    ]


@functools.cache
def library() -> ctypes.CDLL:
    """Built once a process, with checks of alignment, bounds and shifts that end it."""
    assert COMPILER is not None
    with tempfile.TemporaryDirectory() as folder:
        built = Path(folder) / "update_on_host.so"
        command = [COMPILER, "-std=c++17", "-O1", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror"]
        command += ["-Wno-unknown-pragmas", "-fsanitize=undefined", "-fno-sanitize-recover=all"]
        done = subprocess.run(
            [*command, str(SOURCE), "-o", str(built)], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        loaded = ctypes.CDLL(str(built))
    loaded.norm_on_host.restype = ctypes.c_double
    for name in ("walk_on_host", "chunk_weights", "rows_of_a_launch", "argument_bytes"):
        getattr(loaded, name).restype = ctypes.c_int64
    return loaded


def scalar(value: Tensor | None, otherwise: float) -> Scalar:
    """A number behind a pointer, as on the device, or the one that is known."""
    if value is None:
        return Scalar(None, otherwise, False)
    return Scalar(value.data_ptr(), 0.0, value.dtype == torch.float64)


def row(param: Tensor, grad: Tensor, bits: Tensor, **rest: Any) -> HostTensor:
    """A row of contiguous tensors; ``rest`` are further fields."""
    return HostTensor(
        param=param.data_ptr(),
        grad=grad.data_ptr(),
        bits=bits.data_ptr() if bits.numel() > 0 else None,
        count=param.numel(),
        dtype=DTYPES.index(param.dtype),
        grad_dtype=DTYPES.index(grad.dtype),
        **rest,
    )


def copy_fields(copies: Sequence[Tensor], i: int) -> dict[str, Any]:
    """Where the 16-bit copy of parameter ``i`` is, if it has one."""
    if len(copies) == 0 or copies[i].numel() == 0:
        return {}
    return {"copy": copies[i].data_ptr(), "copy_is_half": copies[i].dtype == torch.float16}


def _run(name: str, rows: list[HostTensor], scalars: Any, numbers: Any, flags: Any) -> None:
    getattr(library(), name)(
        (HostTensor * len(rows))(*rows),
        ctypes.c_int64(len(rows)),
        (Scalar * 3)(*scalars),
        (ctypes.c_double * len(numbers))(*numbers),
        (ctypes.c_bool * len(flags))(*flags),
    )


def masked_adamw_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    steps: Sequence[Tensor],
    bits: Sequence[Tensor],
    *more: Any,
    **options: Any,
) -> None:
    """``update_masked_adamw_`` by the device code."""
    copies, grad_factor, found_inf, rate = more
    rows = [
        row(
            param,
            grads[i],
            bits[i],
            first=exp_avgs[i].data_ptr(),
            second=exp_avg_sqs[i].data_ptr(),
            step=steps[i].data_ptr(),
            step_is_double=steps[i].dtype == torch.float64,
            **copy_fields(copies, i),
        )
        for i, param in enumerate(params)
    ]
    scalars = scalar(grad_factor, 1), scalar(found_inf, 0), scalar(rate, options["lr"])
    numbers = [options[name] for name in ("beta1", "beta2", "eps", "weight_decay")]
    flags = [options[name] for name in ("decoupled", "maximize", "zero_masked")]
    _run("adamw_on_host", rows, scalars, numbers, flags)


def masked_sgd_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    momentum_buffers: Sequence[Tensor],
    starts: Sequence[bool],
    bits: Sequence[Tensor],
    *more: Any,
    **options: Any,
) -> None:
    """``update_masked_sgd_`` by the device code."""
    copies, grad_factor, found_inf, rate = more
    rows = []
    for i, param in enumerate(params):
        rest = copy_fields(copies, i)
        if options["momentum"] != 0:
            rest |= {"first": momentum_buffers[i].data_ptr(), "is_start": starts[i]}
        rows.append(row(param, grads[i], bits[i], **rest))
    scalars = scalar(grad_factor, 1), scalar(found_inf, 0), scalar(rate, options["lr"])
    numbers = [options[name] for name in ("momentum", "dampening", "weight_decay")]
    flags = [options[name] for name in ("nesterov", "maximize", "zero_masked")]
    _run("sgd_on_host", rows, scalars, numbers, flags)


def masked_norm(
    grads: Sequence[Tensor], bits: Sequence[Tensor], grad_factor: Tensor | None
) -> Tensor:
    """``update_masked_norm`` by the device code."""
    rows = [row(grad, grad, bits[i]) for i, grad in enumerate(grads)]
    factor = scalar(grad_factor, 1)
    norm = library().norm_on_host(
        (HostTensor * len(rows))(*rows), ctypes.c_int64(len(rows)), ctypes.byref(factor)
    )
    double = any(grad.dtype == torch.float64 for grad in grads)
    return torch.tensor(norm, dtype=torch.float64 if double else torch.float32)


OPS_ON_HOST = {
    "update_masked_adamw_": masked_adamw_,
    "update_masked_sgd_": masked_sgd_,
    "update_masked_norm": masked_norm,
}
