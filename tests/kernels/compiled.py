"""Compiles recorded launches to machine code without a GPU, and reads what ptxas says of it."""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia import compiler as nvidia
from triton.compiler import ASTSource

from sparsekern.kernels.launch import Launch

ARCHITECTURES = (80, 90, 100)
TYPES = {
    torch.float64: "fp64",
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.int16: "i16",
    torch.uint8: "u8",
    torch.bool: "i1",
}


@dataclass(frozen=True)
class Compiled:
    """What one launch costs a multiprocessor."""

    name: str
    architecture: int
    registers: int
    spilled_bytes: int
    shared_bytes: int


def source_of(launch: Launch) -> ASTSource:
    """The kernel with the types of its arguments; pointers are taken as aligned to 16 bytes."""
    names = [p.name for p in launch.kernel.params if not p.is_constexpr]
    signature: dict[str, str] = {}
    constants: dict[str, Any] = dict(launch.constants)
    aligned = {}
    for name, value in zip(names, launch.args, strict=True):
        signature[name] = type_of(value)
        if value is None:
            constants[name] = None
        if isinstance(value, Tensor):
            aligned[(launch.kernel.arg_names.index(name),)] = [["tt.divisibility", 16]]
    for parameter in launch.kernel.params:
        if parameter.is_constexpr:
            signature[parameter.name] = "constexpr"
            constants.setdefault(parameter.name, parameter.default)
    ordered = {p.name: signature[p.name] for p in launch.kernel.params}
    return ASTSource(launch.kernel, ordered, constants, aligned)


def source_as_called(launch: Launch) -> ASTSource:
    """The same with what Triton sees of the numbers in a call: ones, and multiples of 16."""
    source = source_of(launch)
    names = [p.name for p in launch.kernel.params if not p.is_constexpr]
    for name, value in zip(names, launch.args, strict=True):
        if isinstance(value, int) and value == 1:
            source.signature[name] = "constexpr"
            source.constants[(launch.kernel.arg_names.index(name),)] = 1
        elif isinstance(value, int) and value % 16 == 0:
            source.attrs[(launch.kernel.arg_names.index(name),)] = [["tt.divisibility", 16]]
    return source


def type_of(value: Any) -> str:
    """Triton's word for an argument's type."""
    if value is None:
        return "constexpr"
    if isinstance(value, Tensor):
        return "*" + TYPES[value.dtype]
    if isinstance(value, bool):
        return "i1"
    if isinstance(value, float):
        return "fp32"
    return "i32" if -(2**31) <= value < 2**31 else "i64"


def key_of(launch: Launch) -> str:
    """Launches with the same key are the same machine code."""
    types = ",".join(map(type_of, launch.args))
    constants = ",".join(f"{k}={v}" for k, v in sorted(launch.constants.items()))
    name = launch.kernel.fn.__name__
    return f"{name}({types};{constants};{launch.warps}w{launch.stages}s)"


def compile_for(launch: Launch, architecture: int) -> Any:
    """What Triton makes of it for ``sm_<architecture>``."""
    target = GPUTarget("cuda", architecture, 32)
    options = {"num_warps": launch.warps, "num_stages": launch.stages}
    return triton.compile(source_of(launch), target=target, options=options)


def compile_launch(launch: Launch, architecture: int) -> Compiled:
    """Compiles for ``sm_<architecture>``; raises where that fails."""
    built = compile_for(launch, architecture)
    registers, spilled = ptxas(built.asm["ptx"], architecture)
    return Compiled(
        launch.kernel.fn.__name__, architecture, registers, spilled, built.metadata.shared
    )


def ptxas(ptx: str, architecture: int) -> tuple[int, int]:
    """Registers of a thread and bytes spilled, from Triton's own ptxas."""
    name = f"sm_{architecture}" + ("a" if architecture >= 90 else "")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.ptx"
        path.write_text(ptx)
        tool = nvidia.get_ptxas(architecture).path
        command = [tool, "-v", f"--gpu-name={name}", str(path), "-o", str(path) + ".cubin"]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    registers = [int(n) for n in re.findall(r"Used (\d+) registers", text)]
    spills = [int(n) for n in re.findall(r"(\d+) bytes spill", text)]
    return max(registers), sum(spills)
