"""Which format a layer gets when nothing was measured: one fixed, written rule."""

from __future__ import annotations

import torch

# PERF: densities up to which csr beats a dense layer forward + backward, batch 128 and up
# (bench/results). Shapes, and so memory, follow from this rule, never from a clock.
CSR_DENSITY = {"cpu": 0.25, "cuda": 0.02}


def csr_pays(density: float, device: torch.device) -> bool:
    """Whether csr kernels are the rule's choice at this density on this kind of device."""
    return density <= CSR_DENSITY.get(device.type, 0.0)


def choose_format(density: float, device: torch.device, master: str = "compact") -> str:
    """Name of the format that ``format="auto"`` means: ``csr`` where it pays, else ``masked``.

    Methods that need a dense master (``master="dense"``) always get ``masked``, whose kernel
    follows the same rule (:func:`choose_kernel`).
    """
    if master == "dense":
        return "masked"
    return "csr" if csr_pays(density, device) else "masked"


def choose_kernel(density: float, device: torch.device) -> str:
    """What a dense master runs: ``csr`` or ``dense``."""
    return "csr" if csr_pays(density, device) else "dense"
