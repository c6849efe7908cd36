"""Linear layers the bsr ops are tested and timed on, the ugly ones included."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from sparsekern.ops._activation import ACTIVATIONS
from sparsekern.ops._define import Sample
from sparsekern.ops.bsr._samples import matrices
from sparsekern.ops.bsr.index import index_from_mask
from sparsekern.ops.csr._checks import VALUE_DTYPES


def samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    """Arguments of ``bsr_linear``."""
    value_dtype = dtype if dtype in VALUE_DTYPES else torch.float32
    generator = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    def arguments(
        kept: Tensor, block: tuple[int, int], *batch: int, bias: bool = True
    ) -> tuple[Any, ...]:
        index = index_from_mask(kept.to(device))
        return (
            randn(*batch, kept.shape[1] * block[1]).to(device, dtype),
            randn(index.blocks, *block).to(device, value_dtype),
            randn(kept.shape[0] * block[0]).to(device, value_dtype) if bias else None,
            None,
            *index,
        )

    named = {name: (kept, block) for name, kept, block in matrices()}
    for name, matrix in named.items():
        yield Sample(arguments(*matrix, 5), name, small=name == "tiny")
    for batch in (0, 1, 16, 17, 33, 64, 65, 130):
        yield Sample(arguments(*named["typical"], batch), f"batch_{batch}")
    for name in ("four", "eight", "flat", "thirty_two", "odd", "odd_large"):
        yield Sample(arguments(*named[name], 150), f"{name}_150")
    yield Sample(arguments(named["tall_blocks"][0][:1, :2], (16, 32), 520), "long_batch")
    yield Sample(arguments(*named["odd"], 3, 7), "leading_dimensions")
    yield Sample(arguments(*named["typical"]), "one_vector")
    yield Sample(arguments(*named["typical"], 9, bias=False), "no_bias")
    x, *rest = arguments(*named["typical"], 12)
    yield Sample((x[::2], *rest), "strided_rows")
    yield Sample((x.t().contiguous().t(), *rest), "strided_columns")
    yield Sample((x[1:].reshape(-1)[3:][: 10 * 112].view(10, 112), *rest), "offset")
    x, values, bias, _, *index = arguments(*named["tiny"], 6)
    probe = torch.zeros((), device=device, dtype=value_dtype).expand(4, 6)
    yield Sample((x, values, bias, probe, *index), "probe", small=True, promise=True)


def activated_samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    """Arguments of ``bsr_activated_linear``: whole numbers, and a half in the bias, so that no sum
    is near the zero at which ReLU's gradient jumps, however weights are rounded."""
    for sample in samples(device, dtype):
        x, values, bias, _, *index = sample.args
        x, values = x.round(), values.round()
        bias = None if bias is None else bias.round() + 0.5
        if sample.id in ("typical", "tiny", "very_large", "batch_65", "batch_0"):
            for name in ACTIVATIONS[1:] if sample.small or sample.id == "typical" else ("relu",):
                args = (x, values, bias, *index, name)
                yield Sample(args, f"{sample.id}_{name}", small=sample.small)
        if sample.id == "batch_64":
            yield Sample((x * 16, values, bias, *index, "gelu_tanh"), "large_numbers")


def backward_samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    """Arguments of ``bsr_linear_backward``."""
    for sample in samples(device, dtype):
        x, values, bias, _, *index = sample.args
        rows = (index[0].shape[0] - 1) * values.shape[1]
        shape = (*x.shape[:-1], rows)
        # NOTE: a sorted gradient would cancel in dbias, whose error would then say nothing.
        grad = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(device, dtype)
        mask = [True, True, bias is not None]
        yield Sample((grad, x, values, *index, mask), sample.id, small=sample.small)
        if sample.id == "typical":
            for i in range(3):
                only = [i == j for j in range(3)]
                yield Sample((grad, x, values, *index, only), f"only_{i}")
            strided = grad.t().contiguous().t()
            yield Sample((strided, x, values, *index, mask), "strided_grad")
            expanded = grad[:1].expand(grad.shape)
            yield Sample((expanded, x, values, *index, mask), "expanded_grad")


def _arguments() -> tuple[Any, ...]:
    index = index_from_mask(torch.eye(3, dtype=torch.bool))
    return torch.zeros(2, 6), torch.zeros(3, 4, 2), torch.zeros(12), None, *index


def errors() -> Iterator[tuple[tuple[Any, ...], type[Exception], str]]:
    """Wrong arguments of ``bsr_linear``."""
    x, values, bias, probe, *index = _arguments()
    yield (None, values, bias, probe, *index), TypeError, "Expected x to be a tensor"
    yield (x[:, :2], values, bias, probe, *index), ValueError, "Expected x to have 6 features"
    yield (x.long(), values, bias, probe, *index), TypeError, "Expected x to have dtype"
    yield (
        (x.double(), values, bias, probe, *index),
        TypeError,
        "Expected x and values to be float64",
    )
    yield (x, values[0], bias, probe, *index), ValueError, "Expected values to have 3 dimensions"
    yield (x, values.half(), bias, probe, *index), TypeError, "Expected values to have dtype"
    yield (x, values[:2], bias, probe, *index), ValueError, "Expected values to have shape"
    nothing = (x, values[:, :0], bias[:0], probe, *index)
    yield nothing, ValueError, "Expected values to have blocks with elements"
    yield (x, values, bias[:2], probe, *index), ValueError, "Expected bias to have shape"
    yield (x, values, bias.double(), probe, *index), TypeError, "Expected bias to have dtype"
    yield (x, values, bias, torch.zeros(3), *index), ValueError, "Expected probe to have shape"
    wrong = [index[0], index[1].long(), *index[2:]]
    yield (x, values, bias, probe, *wrong), TypeError, "Expected col to have dtype torch.int32"
    short = [*index[:4], index[4][:1]]
    yield (x, values, bias, probe, *short), ValueError, "Expected col, col_t and perm to have 3"
    meta = x.to("meta")
    yield (meta, values, bias, probe, *index), ValueError, "Expected x to be on cpu like values"


def activated_errors() -> Iterator[tuple[tuple[Any, ...], type[Exception], str]]:
    """Wrong arguments of ``bsr_activated_linear``."""
    x, values, bias, _, *index = _arguments()
    for name in ("silu", "ReLU", ""):
        sentence = "Expected activation to be none, relu, gelu or gelu_tanh. Got "
        yield (x, values, bias, *index, name), ValueError, sentence
    yield (x[:, :2], values, bias, *index, "relu"), ValueError, "Expected x to have 6 features"


def backward_errors() -> Iterator[tuple[tuple[Any, ...], type[Exception], str]]:
    """Wrong arguments of ``bsr_linear_backward``."""
    x, values, _, _, *index = _arguments()
    grad, mask = torch.zeros(2, 12), [True, True, True]
    yield (grad[:1], x, values, *index, mask), ValueError, "Expected grad to have shape"
    yield (grad.double(), x, values, *index, mask), TypeError, "Expected grad to have dtype"
    yield (grad, x, values, *index, [True]), ValueError, "Expected output_mask to have 3 entries"
