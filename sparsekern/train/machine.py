"""What a run ran on, and what of this package works here."""

from __future__ import annotations

import importlib
import os
import platform
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import torch

import sparsekern
from sparsekern._extension import cuda, native
from sparsekern.kernels.launch import INTERPRETING, why_no_triton
from sparsekern.nn.times_cache import processor_name
from sparsekern.ops import OPS, Op


def machine_name() -> str:
    """The processor's name and its number of logical cores."""
    return f"{processor_name()}, {os.cpu_count()} cores"


def versions() -> dict[str, Any]:
    """What a measurement depends on besides the recipe."""
    return {
        "sparsekern": sparsekern.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "isa": native.isa,
        "machine": machine_name(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
    }


def native_facts() -> dict[str, str]:
    """The native library: where it is or why it is not, what it runs and what was compiled."""
    facts = {"native library": str(native.path) if native.loaded else f"none: {native.reason}"}
    if native.isa is not None:
        facts["instruction set in use"] = native.isa
    try:
        module = importlib.import_module("sparsekern._C")
    except ImportError as error:
        return facts | {"build facts": f"none: {error}"}
    build: dict[str, str] = module.build_info()
    features: dict[str, bool] = module.cpu_features()
    facts["instruction sets compiled"] = build.pop("isas")
    facts["CPU features"] = ", ".join(key for key, there in features.items() if there) or "none"
    return facts | {key.replace("_", " "): value for key, value in build.items()}


def gpu_facts() -> dict[str, str]:
    """The CUDA library, Triton and the GPUs: what is there, or why it is not."""
    facts = {"CUDA library": str(cuda.path) if cuda.loaded else f"none: {cuda.reason}"}
    if cuda.build is not None:
        facts["CUDA library built by"] = cuda.build
    facts["Triton"] = _triton()
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for i in range(count):
        major, minor = torch.cuda.get_device_capability(i)
        facts[f"cuda:{i}"] = f"{torch.cuda.get_device_name(i)}, capability {major}.{minor}"
    return facts if count else facts | {"CUDA devices": "none: torch sees no CUDA device."}


def _triton() -> str:
    device = torch.device("cpu" if INTERPRETING else "cuda")
    try:
        version = metadata.version("triton")
    except metadata.PackageNotFoundError:
        version = ""
    reason = why_no_triton(device)
    if reason is None:
        return f"{version or 'loaded'}{', interpreted' if INTERPRETING else ''}"
    return f"{version}, not used: {reason}" if version else f"none: {reason}"


@dataclass(frozen=True)
class VariantFacts:
    """One kernel of one op, asked about the op's first sample."""

    op: str
    variant: str
    reason: str | None  # why it cannot run here, None if it can
    chosen: bool  # whether "auto" picks it


def op_facts(device: torch.device) -> list[VariantFacts]:
    """Every op with its variants on a device of this machine, float32."""
    facts = []
    for name in OPS:
        facts += _variants_of(OPS[name], device)
    return facts


def _variants_of(op: Op, device: torch.device) -> list[VariantFacts]:
    sample = next(iter(op.samples(device, torch.float32)))
    if op.select is None:
        dispatch = torch._C._dispatch_has_kernel_for_dispatch_key
        if dispatch(f"sparsekern::{op.name}", device.type.upper()):
            return [VariantFacts(op.name, "native", None, True)]
        triton = op.triton is not None and not op.triton.supports(*sample.args, **sample.kwargs)
        return [VariantFacts(op.name, "triton" if triton else "reference", None, True)]
    chosen = op.select(*sample.args, **sample.kwargs)
    return [
        VariantFacts(op.name, row, variant.supports(*sample.args, **sample.kwargs), row == chosen)
        for row, variant in op.variants.items()
    ]
