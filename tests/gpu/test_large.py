"""Tensors of more than 2^31 elements on a device; the same bodies on the CPU over small ones.

The last elements are compared with the same call on them alone.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sparsekern.ops import mask, update
from tests.gpu import cases
from tests.gpu.cases import CPU, CUDA, formats

BEYOND = 2**31 + 2**20 + 13
GIB = 2**30
on_sizes = pytest.mark.parametrize(
    ("device", "size"),
    [
        pytest.param(CPU, 2**12 + 13, id="cpu"),
        pytest.param(CUDA, BEYOND, id="cuda", marks=[pytest.mark.gpu, pytest.mark.slow]),
    ],
)
END = 1000


def need(device: torch.device, size: int, bytes_each: int) -> None:
    """Skips where that many bytes for each element are not free."""
    if device.type != "cuda":
        return
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(device)
    wanted = size * bytes_each
    if free < wanted:
        pytest.skip(f"needs {wanted / GIB:.0f} GiB of memory, {free / GIB:.0f} GiB are free")


def every(size: int, stride: int, device: torch.device) -> Tensor:
    """A mask with every so manieth element set, and the last one."""
    kept = torch.zeros(size, dtype=torch.bool, device=device)
    kept[::stride] = True
    kept[-1] = True
    return kept


@on_sizes
def test_bits(device: torch.device, size: int) -> None:
    need(device, size, 4)
    kept = every(size, 7, device)
    bits = mask.pack_bits(kept)
    assert bits.shape == ((size + 7) // 8,)
    start = (size - END) // 8 * 8
    assert torch.equal(bits[start // 8 :], mask.pack_bits(kept[start:].clone()))
    assert torch.equal(mask.unpack_bits(bits, (size,)), kept)


@on_sizes
def test_apply(device: torch.device, size: int) -> None:
    need(device, size, 8)
    bits = mask.pack_bits(every(size, 7, device))
    values = torch.ones(size, dtype=torch.float16, device=device)
    mask.apply_(values, bits)
    assert torch.equal(values[-END:] != 0, every(size, 7, device)[-END:])
    assert int(torch.count_nonzero(values)) == int(torch.count_nonzero(every(size, 7, device)))


@on_sizes
def test_topk(device: torch.device, size: int) -> None:
    """All of the ten largest of a thousand values, and the first few of the next."""
    need(device, size, 20)
    scores = (torch.arange(size, dtype=torch.int32, device=device) % 1000).float()
    if size > 2**31:  # int32 has wrapped around
        scores = torch.arange(size, device=device).remainder_(1000).float()
    above = scores >= 990
    ties = (size - 1000) // 2000
    kept = mask.topk(scores, int(torch.count_nonzero(above)) + ties)
    assert kept[above].all()
    rest = kept.logical_and_(~above).nonzero().view(-1)
    assert torch.equal(rest, 989 + 1000 * torch.arange(ties, device=device))


@on_sizes
@pytest.mark.parametrize("zero_masked", [False, True])
def test_masked_adamw(device: torch.device, size: int, zero_masked: bool) -> None:
    need(device, size, 20)
    generator = torch.Generator(device).manual_seed(0)
    tensors = [torch.empty(size, device=device) for _ in range(4)]
    for each in tensors:
        each.uniform_(0.1, 1.0, generator=generator)
    bits = mask.pack_bits(every(size, 3, device))
    start = (size - END) // 8 * 8
    ends = [each[start:].clone() for each in tensors]
    _step(tensors, bits, zero_masked)
    _step(ends, bits[start // 8 :].clone(), zero_masked)
    for whole, end in zip(tensors, ends, strict=True):
        assert torch.equal(whole[start:], end)


def _step(tensors: list[Tensor], bits: Tensor, zero_masked: bool) -> None:
    """One step of AdamW on weights, gradients and two moments."""
    lists = [[each] for each in tensors]
    steps = [torch.tensor(3.0, device=bits.device)]
    update.masked_adamw_(
        *lists,
        steps,
        [bits],
        lr=0.1,
        betas=(0.9, 0.999),
        eps=1e-8,
        weight_decay=0.01,
        decoupled=True,
        maximize=False,
        zero_masked=zero_masked,
    )


def tail(layer: nn.Module, x: Tensor, rows: int) -> None:
    """Output and input gradient of the last rows are those of these rows alone."""
    x.requires_grad_()
    x.grad = None
    y = layer(x)
    y.backward(torch.ones((), dtype=y.dtype, device=y.device).expand(y.shape))
    end = x.detach()[-rows:].clone().requires_grad_()
    out = layer(end)
    out.backward(torch.ones_like(out))
    tolerance = {"rtol": 2e-2, "atol": 2e-2}  # bfloat16; other rows differ by far more
    torch.testing.assert_close(y[-rows:], out, **tolerance)
    torch.testing.assert_close(x.grad[-rows:], end.grad, **tolerance)


def every_variant(layer: nn.Module, x: Tensor, rows: int) -> None:
    """:func:`tail` with each kernel of the layer that runs here."""
    for name in layer.format.variants:
        layer.format.variant = name
        try:
            with torch.no_grad():
                layer(x[:rows])
        except NotImplementedError:
            continue
        tail(layer, x, rows)


@on_sizes
@formats
def test_linear(format: str, device: torch.device, size: int) -> None:
    need(device, size, 14)
    dense, keep = cases.masked(nn.Linear(64, 48), format)
    layer = cases.sparse(dense.bfloat16(), keep, format).to(device)
    x = torch.randn(size // 64, 64, dtype=torch.bfloat16, device=device)
    every_variant(layer, x, 17)


@on_sizes
@formats
def test_conv2d(format: str, device: torch.device, size: int) -> None:
    need(device, size, 18)
    dense, keep = cases.masked(nn.Conv2d(64, 48, 3, padding=1, stride=2), format)
    layer = cases.sparse(dense.bfloat16(), keep, format).to(device)
    side = 32 if device.type == "cuda" else 4
    x = torch.empty(size // 64 // side**2, 64, side, side, dtype=torch.bfloat16, device=device)
    x = x.to(memory_format=torch.channels_last).normal_()
    every_variant(layer, x, 2)
