"""What the tests of this folder share: devices, layers of every format, and one comparison.

Every test takes its device as a parameter: the CPU in every run of the suite, so that the test
itself is known to be right, and CUDA (marked ``gpu``) where there is one.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparsekern.formats import FORMATS
from sparsekern.nn import SparseConv2d, SparseLinear
from sparsekern.ops import bsr, mask
from sparsekern.testing import assert_close_to_oracle

CPU = torch.device("cpu")
CUDA = torch.device("cuda", 0)
on_devices = pytest.mark.parametrize(
    "device", [CPU, pytest.param(CUDA, marks=pytest.mark.gpu)], ids=lambda device: device.type
)
formats = pytest.mark.parametrize("format", list(FORMATS))
SIDE = 16  # of blocks: what tensor cores take


def kept(shape: tuple[int, ...], format: str, density: float = 0.25) -> Tensor:
    """A random mask that the format can hold."""
    scores = torch.rand(shape)
    if format == "condensed":
        return mask.topk_rows(scores, round(density * scores[0].numel()))
    if format == "bsr":
        matrix = torch.rand(shape[0], scores[0].numel())
        count = round(density * matrix.numel() / SIDE**2)
        blocks = bsr.block_topk(matrix, count, (SIDE, SIDE))
        return bsr.from_matrix(blocks, shape)
    return scores < density


def masked(layer: nn.Module, format: str) -> tuple[nn.Module, Tensor]:
    """The dense layer with zeros where the mask says so, and the mask."""
    keep = kept(tuple(layer.weight.shape), format)
    with torch.no_grad():
        layer.weight.mul_(keep)
    return layer, keep


def sparse(dense: nn.Module, keep: Tensor, format: str) -> nn.Module:
    """The dense layer's sparse twin."""
    kind = SparseLinear if isinstance(dense, nn.Linear) else SparseConv2d
    block = (SIDE, SIDE) if format == "bsr" else None
    return kind.from_dense(dense, mask=keep, format=format, block_shape=block)


def linear_case() -> tuple[nn.Module, Tensor]:
    """80 inputs, 48 outputs, 33 rows."""
    return nn.Linear(80, 48), torch.randn(3, 11, 80)


def conv2d_case() -> tuple[nn.Module, Tensor]:
    """3 x 3, stride 2, two groups."""
    return nn.Conv2d(64, 48, 3, stride=2, padding=1, groups=2), torch.randn(3, 64, 9, 8)


CASES = {"linear": linear_case, "conv2d": conv2d_case}


def twin_tensors(x: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """A leaf with these numbers."""
    return x.detach().to(device, dtype).requires_grad_(x.is_floating_point())


def on_stream(device: torch.device, stream: Any) -> AbstractContextManager[Any]:
    """Work on a stream of the device; the CPU has none."""
    return torch.cuda.stream(stream) if device.type == "cuda" else nullcontext()


Results = tuple[Tensor, Tensor, Tensor, Tensor]


def run(layer: nn.Module, x: Tensor, call: Callable[[nn.Module, Tensor], Tensor]) -> Results:
    """Output and gradients of input, dense weight and bias, on the CPU."""
    y = call(layer, x)
    y.backward(torch.linspace(-1, 1.5, y.numel()).view(y.shape).to(y))
    gradient = getattr(layer, "format", layer)
    if gradient is layer:
        of_weight = layer.weight.grad
    else:
        parameter = gradient.parameter
        of_weight = torch.zeros(gradient.shape, dtype=parameter.grad.dtype, device=y.device)
        of_weight[gradient.mask()] = gradient.active_values(parameter.grad)
    return tuple(each.detach().cpu() for each in (y, x.grad, of_weight, layer.bias.grad))


def plainly(layer: nn.Module, x: Tensor) -> Tensor:
    """The layer as it is."""
    return layer(x)


def compare(
    layer: nn.Module,
    dense: nn.Module,
    keep: Tensor,
    x: Tensor,
    device: torch.device,
    call: Callable[[nn.Module, Tensor], Tensor] = plainly,
) -> None:
    """Forward and backward of a sparse layer on a device against its dense twin in float64 on the
    CPU, by the tolerance rule: twice the error of the dense twin called in the same way."""
    got = run(layer, twin_tensors(x, device), call)
    twin = copy.deepcopy(dense).to(device)
    plain = run(twin, twin_tensors(x, device), call)
    oracle = run(copy.deepcopy(dense).double(), twin_tensors(x, CPU, torch.float64), plainly)
    names = ("output", "gradient of x", "gradient of the weight", "gradient of the bias")
    for name, g, p, o in zip(names, got, plain, oracle, strict=True):
        if name == "gradient of the weight":
            p, o = p * keep, o * keep
        assert_close_to_oracle(g, p, o, name)


def same(models: Iterable[nn.Module]) -> bool:
    """Whether all models hold the same tensors, bit by bit."""
    states = [{name: value.cpu() for name, value in model.state_dict().items()} for model in models]
    return all(
        state.keys() == states[0].keys()
        and all(torch.equal(value, states[0][name]) for name, value in state.items())
        for state in states
    )
