"""Which kernels can take a block-sparse convolution, and which one runs when none is asked for."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sparsekern._extension import native
from sparsekern.kernels.launch import Launcher
from sparsekern.ops._geometry import output_size
from sparsekern.ops.bsr._variants import choose_on_cuda, triton_limits

MOST_PIXELS = 2**31 - 2**16  # of all images: Triton kernels count them in 32 bits


def supports_plane(x: Tensor, values: Tensor, *rest: Any, **geometry: Any) -> str | None:
    """Of "plane" for ``bsr_conv2d``."""
    return _supports(x, rest[2], geometry)


def supports_plane_backward(
    grad: Tensor, x: Tensor, values: Tensor, *rest: Any, **geometry: Any
) -> str | None:
    """Of "plane" for ``bsr_conv2d_backward``."""
    return _supports(x, rest[0], geometry)


def _supports(x: Tensor, crow: Tensor, geometry: dict[str, Any]) -> str | None:
    if not native.loaded:
        return f"the native library is not loaded: {native.reason}"
    if x.device.type != "cpu":
        return f"it runs on the CPU. Got {x.device}."
    rows, groups = crow.shape[0] - 1, geometry.get("groups", 1)
    if rows % groups != 0:
        return f"no block may reach over two groups. Got {rows} rows of blocks in {groups} groups."
    return None


def limits(x: Tensor, values: Tensor, *rest: Any, **geometry: Any) -> str | None:
    """Of the Triton kernels of ``bsr_conv2d``."""
    groups = geometry.get("groups", 1)
    if groups != 1:
        return f"Triton kernels convolve one group. Got {groups} groups."
    images, _, *size = x.shape
    out = output_size(
        size,
        geometry["kernel_size"],
        geometry.get("stride", (1, 1)),
        geometry.get("padding", (0, 0)),
        geometry.get("dilation", (1, 1)),
    )
    pixels = images * max(size[0] * size[1], out[0] * out[1])
    if pixels >= MOST_PIXELS:
        return f"Triton kernels take fewer than {MOST_PIXELS} pixels. Got {pixels}."
    return triton_limits(values)


def limits_backward(
    grad: Tensor, x: Tensor, values: Tensor, *rest: Any, **geometry: Any
) -> str | None:
    """Of the Triton kernels of ``bsr_conv2d_backward``."""
    return limits(x, values, **geometry)


TRITON = Launcher("bsr.conv2d", "conv2d", limits)
TRITON_BACKWARD = Launcher("bsr.conv2d_backward", "conv2d_backward", limits_backward)


def select(x: Tensor, *rest: Any, **geometry: Any) -> str:
    """The variant of ``bsr_conv2d``."""
    if x.device.type == "cuda":
        return choose_on_cuda(TRITON, x, *rest, **geometry)
    if not native.loaded or x.device.type != "cpu":
        return "reference"
    return "plane" if _supports(x, rest[3], geometry) is None else "dense"


def select_backward(grad: Tensor, x: Tensor, values: Tensor, *rest: Any, **geometry: Any) -> str:
    """The variant of ``bsr_conv2d_backward``."""
    if x.device.type == "cuda":
        fits = TRITON_BACKWARD.supports(grad, x, values, *rest, **geometry) is None
        return "triton" if fits else "reference"
    return "plane" if _supports(x, rest[0], geometry) is None else "reference"
