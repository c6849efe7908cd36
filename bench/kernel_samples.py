"""Arguments of real size for each op, for timing; an op without an entry is timed on its largest
sample of the contract suite.

A new op adds one line to ``SAMPLES``: a function from a device to the op's arguments, or to a
:class:`Sample` where there are keyword arguments too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sparsekern.ops import Op, Sample, bsr, csr, mask, update
from sparsekern.testing import all_tensors

BATCH, ROWS, COLS, DENSITY = 128, 1024, 1024, 0.1
BLOCK = 16

CONVOLUTION = {"kernel_size": (3, 3), "padding": (1, 1)}
IMAGES, CHANNELS, SIZE = 32, 64, 32

Maker = Callable[[torch.device], tuple[Any, ...] | Sample]


def _kept(device: torch.device, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(ROWS, COLS, generator=generator) < DENSITY).to(device)


def _count(kept: Tensor) -> int:
    return int(torch.count_nonzero(kept))


def _linear(device: torch.device) -> tuple[Any, ...]:
    index = csr.index_from_mask(_kept(device))
    x = torch.randn(BATCH, COLS, device=device)
    values, bias = torch.randn(index.nnz, device=device), torch.randn(ROWS, device=device)
    return x, values, bias, None, *index


def _linear_backward(device: torch.device) -> tuple[Any, ...]:
    x, values, _, _, *index = _linear(device)
    return torch.randn(BATCH, ROWS, device=device), x, values, None, *index, [True, True, True]


def _conv2d(device: torch.device) -> Sample:
    generator = torch.Generator().manual_seed(0)
    kept = torch.rand(CHANNELS, CHANNELS, 3, 3, generator=generator) < DENSITY
    index = csr.index_from_mask(kept.to(device))
    rows = (index.crow, index.col, index.crow_t, index.col_t, index.perm)
    x = torch.randn(IMAGES, CHANNELS, SIZE, SIZE, device=device)
    values, bias = torch.randn(index.nnz, device=device), torch.randn(CHANNELS, device=device)
    return Sample((x, values, bias, None, *rows), "benchmark", CONVOLUTION)


def _conv2d_backward(device: torch.device) -> Sample:
    x, values, _, _, *rows = _conv2d(device).args
    args = (torch.randn_like(x), x, values, *rows, [True, True, True])
    return Sample(args, "benchmark", CONVOLUTION)


def _mask_linear(device: torch.device) -> tuple[Any, ...]:
    kept = _kept(device)
    weight, bias = torch.randn(ROWS, COLS, device=device) * kept, torch.randn(ROWS, device=device)
    return torch.randn(BATCH, COLS, device=device), weight, bias, None, mask.pack_bits(kept)


def _mask_linear_backward(device: torch.device) -> tuple[Any, ...]:
    x, weight, _, _, bits = _mask_linear(device)
    return torch.randn(BATCH, ROWS, device=device), x, weight, bits, [True, True, True, False]


def _rows(device: torch.device, seed: int = 0) -> tuple[Tensor, Tensor]:
    kept = _kept(device, seed)
    return csr.from_mask(kept, _count(kept))


def _to_dense(device: torch.device) -> tuple[Any, ...]:
    crow, col = _rows(device)
    return torch.randn(col.shape, device=device), crow, col, COLS


def _rebuild(device: torch.device) -> tuple[Any, ...]:
    kept = _kept(device)
    return *csr.index_from_mask(kept), kept.flip(0), COLS, 1


def _move(device: torch.device) -> tuple[Any, ...]:
    old, new = _rows(device), _rows(device, seed=1)
    positions = csr.position_map(*new, *old)
    return torch.randn(positions.shape, device=device), positions.clamp(max=positions.numel() - 1)


def _weights(device: torch.device) -> list[list[Tensor]]:
    """Ten weights, gradients, states and masks."""
    many = range(10)
    lists = [[torch.rand(ROWS, COLS, device=device) for _ in many] for _ in range(3)]
    return [*lists, [mask.pack_bits(_kept(device, seed)) for seed in many]]


def _masked_adamw(device: torch.device) -> Sample:
    params, grads, moments, bits = _weights(device)
    squares = [each.clone() for each in moments]
    steps = [torch.full((), 3.0, device=device) for _ in params]
    rates = {"lr": 1e-6, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.01}
    flags = {"decoupled": True, "maximize": False, "zero_masked": True}
    args = (params, grads, moments, squares, steps, bits, [], None, None, None)
    return Sample(args, "benchmark", {**rates, **flags})


def _compact_adamw(device: torch.device) -> Sample:
    full = _masked_adamw(device)
    params, grads, moments, squares, steps, bits, *more = full.args
    kept = [mask.unpack_bits(each, [ROWS, COLS]) for each in bits]
    states = [[v[k] for v, k in zip(each, kept, strict=True)] for each in (moments, squares)]
    ranks = [update.ranks_of_bits(each, ROWS * COLS) for each in bits]
    return Sample((params, grads, *states, steps, bits, ranks, *more), "benchmark", full.kwargs)


def _masked_sgd(device: torch.device) -> Sample:
    params, grads, moments, bits = _weights(device)
    rates = {"lr": 1e-6, "momentum": 0.9, "dampening": 0.0, "weight_decay": 1e-4}
    flags = {"nesterov": False, "maximize": False, "zero_masked": True}
    args = (params, grads, moments, [False] * len(params), bits, [], None, None, None)
    return Sample(args, "benchmark", {**rates, **flags})


def _masked_norm(device: torch.device) -> tuple[Any, ...]:
    _, grads, _, bits = _weights(device)
    return grads, bits, None


def _bsr_linear(device: torch.device) -> tuple[Any, ...]:
    index = bsr.index_from_mask(_kept(device)[: ROWS // BLOCK, : COLS // BLOCK])
    x = torch.randn(BATCH, COLS, device=device)
    values = torch.randn(index.blocks, BLOCK, BLOCK, device=device)
    return x, values, torch.randn(ROWS, device=device), None, *index


def _bsr_linear_backward(device: torch.device) -> tuple[Any, ...]:
    x, values, _, _, *index = _bsr_linear(device)
    return torch.randn(BATCH, ROWS, device=device), x, values, *index, [True, True, True]


def _bsr_conv2d(device: torch.device) -> Sample:
    generator = torch.Generator().manual_seed(0)
    shape = (CHANNELS // BLOCK, 9 * CHANNELS // BLOCK)
    index = bsr.index_from_mask((torch.rand(shape, generator=generator) < DENSITY).to(device))
    x = torch.randn(IMAGES, CHANNELS, SIZE, SIZE, device=device)
    values = torch.randn(index.blocks, BLOCK, BLOCK, device=device)
    bias = torch.randn(CHANNELS, device=device)
    return Sample((x, values, bias, None, *index), "benchmark", CONVOLUTION)


def _bsr_conv2d_backward(device: torch.device) -> Sample:
    x, values, _, _, *index = _bsr_conv2d(device).args
    args = (torch.randn_like(x), x, values, *index, [True, True, True])
    return Sample(args, "benchmark", CONVOLUTION)


def _bsr_to_dense(device: torch.device) -> tuple[Any, ...]:
    _, values, _, _, crow, col, *_ = _bsr_linear(device)
    return values, crow, col, COLS // BLOCK


def _bsr_gather(device: torch.device) -> tuple[Any, ...]:
    _, _, _, _, crow, col, *_ = _bsr_linear(device)
    return torch.randn(ROWS, COLS, device=device), crow, col, BLOCK, BLOCK


def _condensed_linear(device: torch.device) -> tuple[Any, ...]:
    fan_in = int(DENSITY * COLS)
    kept = mask.topk_rows(torch.rand(ROWS, COLS, device=device), fan_in)
    col = csr.from_mask(kept, ROWS * fan_in)[1].view(ROWS, fan_in)
    x, values = torch.randn(8, COLS, device=device), torch.randn(col.numel(), device=device)
    return x, values, torch.randn(ROWS, device=device), col, COLS


SAMPLES: dict[str, Maker] = {
    "bsr_linear": _bsr_linear,
    "bsr_linear_backward": _bsr_linear_backward,
    "bsr_conv2d": _bsr_conv2d,
    "bsr_conv2d_backward": _bsr_conv2d_backward,
    "bsr_to_dense": _bsr_to_dense,
    "bsr_gather": _bsr_gather,
    "condensed_linear": _condensed_linear,
    "csr_linear": _linear,
    "csr_linear_backward": _linear_backward,
    "csr_conv2d": _conv2d,
    "csr_conv2d_backward": _conv2d_backward,
    "csr_from_mask": lambda device: (_kept(device), _count(_kept(device))),
    "csr_transpose": lambda device: (*_rows(device), COLS),
    "csr_panel_starts": lambda device: (*_rows(device), COLS),
    "csr_position_map": lambda device: (*_rows(device), *_rows(device, seed=1)),
    "csr_rebuild_": _rebuild,
    "csr_move_": _move,
    "csr_to_dense": _to_dense,
    "csr_gather": lambda device: (torch.randn(ROWS, COLS, device=device), *_rows(device)),
    "mask_linear": _mask_linear,
    "mask_linear_backward": _mask_linear_backward,
    "mask_topk": lambda device: (
        torch.randn(ROWS, COLS, device=device),
        int(DENSITY * ROWS * COLS),
        None,
    ),
    "mask_topk_rows": lambda device: (
        torch.randn(ROWS, COLS, device=device),
        torch.full((ROWS,), int(DENSITY * COLS), device=device),
        None,
    ),
    "mask_topk_bits": lambda device: (
        torch.randn(ROWS, COLS, device=device),
        int(DENSITY * ROWS * COLS),
        None,
    ),
    "mask_pack_bits": lambda device: (_kept(device),),
    "mask_count": lambda device: (_kept(device),),
    "mask_unpack_bits": lambda device: (mask.pack_bits(_kept(device)), [ROWS, COLS]),
    "mask_apply_": lambda device: (
        torch.randn(ROWS, COLS, device=device),
        mask.pack_bits(_kept(device)),
    ),
    "update_compact_adamw_": _compact_adamw,
    "update_masked_adamw_": _masked_adamw,
    "update_masked_sgd_": _masked_sgd,
    "update_masked_norm": _masked_norm,
}


def sample(op: Op, device: torch.device) -> Sample:
    """What an op is timed on."""
    if op.name in SAMPLES:
        made = SAMPLES[op.name](device)
        return made if isinstance(made, Sample) else Sample(made, "benchmark")
    return max(op.samples(device, torch.float32), key=_numel)


def _numel(each: Sample) -> int:
    return sum(value.numel() for value in all_tensors(each.args))
