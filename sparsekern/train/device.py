"""Where a run trains, and in which precision."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch

PRECISIONS = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def check_device_name(name: str) -> None:
    """Raises ValueError unless ``name`` is what a recipe's device can be."""
    if re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", name) is None:
        raise ValueError(f"Expected device to be auto, cpu, cuda or cuda:<number>. Got {name!r}.")


def find_device(name: str) -> torch.device:
    """The device of that name; "auto" is the GPU where there is one.

    Raises:
        ValueError: another name, or a device that this machine does not have.
    """
    check_device_name(name)
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise ValueError(
                f"Expected device to be one of this machine, which has {count} CUDA devices. "
                f"Got {name!r}."
            )
    return device


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """What the forward pass runs under: torch's autocast, or nothing for float32."""
    if precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, dtype=PRECISIONS[precision])


def gradient_scaler(device: torch.device, precision: str) -> torch.amp.GradScaler:
    """torch's GradScaler, which does something for float16 alone: its small gradients are zero."""
    return torch.amp.GradScaler(device.type, enabled=precision == "float16")


def wait_for(device: torch.device) -> Callable[[], None]:
    """What returns once the device has done all it was asked for."""
    if device.type == "cuda":
        return lambda: torch.cuda.synchronize(device)
    return lambda: None
