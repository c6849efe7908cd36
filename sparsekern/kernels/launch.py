"""How Triton kernels are reached and launched, and what keeps them from running here.

Imports torch alone. With ``TRITON_INTERPRET=1`` in the environment, Triton's interpreter runs the
kernels on the CPU, which is how they are tested on machines without a GPU.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1"
MINIMUM_CAPABILITY = (8, 0)


@dataclass(frozen=True)
class Launch:
    """One launch that was recorded, not run."""

    kernel: Any
    grid: tuple[int, ...]
    args: tuple[Any, ...]
    constants: dict[str, Any]
    warps: int
    stages: int


_recorded: list[Launch] | None = None


@contextmanager
def recording() -> Iterator[list[Launch]]:
    """Launches inside of the block are listed and not run: for checks without a GPU."""
    global _recorded
    outer, _recorded = _recorded, []
    try:
        yield _recorded
    finally:
        _recorded = outer


def debugging() -> bool:
    """Whether SPARSEKERN_DEBUG=1 asks for checks of contents, for which the host waits."""
    return os.environ.get("SPARSEKERN_DEBUG") == "1" and _recorded is None


def launch(
    kernel: Any,
    grid: tuple[int, ...],
    *args: Any,
    warps: int = 4,
    stages: int = 2,
    **constants: Any,
) -> None:
    """Runs ``kernel`` on the device and the current stream of its first tensor.

    Args:
        kernel: a ``triton.jit`` function.
        grid: how many programs, up to three dimensions; nothing is launched where one is 0.
        args: tensors, numbers and None, in the order of the kernel's parameters.
        warps, stages: of a program.
        constants: the kernel's ``tl.constexpr`` parameters by name.
    """
    if 0 in grid:
        return
    if _recorded is not None:
        _recorded.append(Launch(kernel, grid, args, constants, warps, stages))
        return
    run = functools.partial(kernel[grid], *args, num_warps=warps, num_stages=stages, **constants)
    device = next(a.device for a in args if isinstance(a, Tensor))
    if device.type != "cuda" or device.index == torch.cuda.current_device():
        run()
        return
    with torch.cuda.device(device):
        run()


def why_no_triton(device: torch.device) -> str | None:
    """None where Triton kernels run on that device, or the reason why they do not."""
    return reason_on(device)


# NOTE: what torch.compiler.assume_constant_result does, without its import of the compiler: torch
# could not trace the search for a C compiler while a layer chooses its variant.
why_no_triton._dynamo_marked_constant = True  # type: ignore[attr-defined]


@functools.cache
def reason_on(device: torch.device) -> str | None:
    """:func:`why_no_triton`, found out."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed."
    if INTERPRETING:
        return None if device.type == "cpu" else "TRITON_INTERPRET=1 keeps Triton on the CPU."
    if device.type != "cuda":
        return f"Triton kernels run on CUDA devices. Got {device}."
    if torch.version.hip is not None:
        return "Triton kernels were written for NVIDIA GPUs. Got an AMD one."
    if not torch.cuda.is_available():
        return "torch sees no CUDA device."
    capability = torch.cuda.get_device_capability(device)
    if capability < MINIMUM_CAPABILITY:
        name = ".".join(map(str, capability))
        return f"Triton kernels need compute capability 8.0. Got {name}."
    if not any(map(shutil.which, (os.environ.get("CC", "cc"), "gcc", "clang"))):
        return "Triton needs a C compiler (cc, gcc or clang) at run time. Got none."
    return None


def device_of(args: tuple[Any, ...]) -> torch.device:
    """The device of the first tensor among the arguments, those in lists too; else the CPU."""
    for value in args:
        if isinstance(value, Tensor):
            return value.device
        if isinstance(value, (list, tuple)) and value and isinstance(value[0], Tensor):
            return value[0].device
    return torch.device("cpu")


class Launcher:
    """The launcher of an op's Triton kernels, imported when it is first called.

    Args:
        module: below ``sparsekern.kernels``, e.g. "csr.linear".
        function: its name in that file; takes the op's arguments and returns what the op returns.
        limits: ``limits(*args, **kwargs)`` is None, or the reason why the kernels cannot take these
            arguments.
    """

    def __init__(
        self, module: str, function: str, limits: Callable[..., str | None] | None = None
    ) -> None:
        self.module, self.name, self.limits = f"sparsekern.kernels.{module}", function, limits
        self._function: Callable[..., Any] | None = None

    def supports(self, *args: Any, **kwargs: Any) -> str | None:
        """None where the kernels take these arguments on their device, or the reason."""
        reason = why_no_triton(device_of(args))
        if reason is None and self.limits is not None:
            return self.limits(*args, **kwargs)
        return reason

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._function is None:
            self._function = getattr(importlib.import_module(self.module), self.name)
        return self._function(*args, **kwargs)
