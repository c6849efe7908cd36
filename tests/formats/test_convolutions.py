"""Convolutions of every format against torch's: outputs, gradients, and after a change of mask."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from sparsekern.formats import FORMATS
from sparsekern.ops import bsr
from tests.formats.test_contract import NAMES, held_mask

CASES: list[tuple[str, tuple[int, int] | None]] = [(name, None) for name in NAMES]
CASES.append(("bsr", (4, 4)))


@pytest.mark.parametrize(("name", "block"), CASES)
def test_convolution_and_gradients(name: str, block: tuple[int, int] | None) -> None:
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(12, 8, 3, 2, generator=generator)
    noise = torch.rand(weight.shape, generator=generator)
    options: dict[str, Any] = {}
    if block is None:
        mask = held_mask(name, noise.flatten(1), 0.3).view(weight.shape)
    else:
        mask = bsr.block_topk(noise, 14, block)
        options["block_shape"] = block
    stored = FORMATS[name].from_dense(weight, mask, **options)
    dense = (weight * mask).requires_grad_()
    x = torch.randn(2, 16, 7, 6, generator=generator)
    geometry: dict[str, Any] = {"stride": (2, 1), "padding": (1, 0), "groups": 2}
    stored.arm_dense_grad()
    y = stored.conv2d(x, **geometry)
    torch.testing.assert_close(y, F.conv2d(x, dense, **geometry))
    y.square().sum().backward()
    F.conv2d(x, dense, **geometry).square().sum().backward()
    assert dense.grad is not None
    gradient = stored.active_values(stored.parameter.grad)
    torch.testing.assert_close(gradient, dense.grad[mask], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(stored.take_dense_grad(), dense.grad, rtol=1e-4, atol=1e-4)
    stored.set_mask(mask.flip(0))
    stored.validate()
    assert torch.equal(stored.mask(), mask.flip(0))
