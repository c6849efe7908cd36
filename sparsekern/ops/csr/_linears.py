"""What the ops of csr linear layers are tested on."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from sparsekern.ops._activation import ACTIVATIONS
from sparsekern.ops._define import Sample
from sparsekern.ops.csr._checks import VALUE_DTYPES
from sparsekern.ops.csr._samples import matrices
from sparsekern.ops.csr.index import index_from_mask


def samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    """Arguments of ``csr_linear``."""
    value_dtype = dtype if dtype in VALUE_DTYPES else torch.float32
    generator = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    def arguments(mask: Tensor, *batch: int, bias: bool = True) -> tuple[Any, ...]:
        index = index_from_mask(mask.to(device))
        return (
            randn(*batch, mask.shape[1]).to(device, dtype),
            randn(index.nnz).to(device, value_dtype),
            randn(mask.shape[0]).to(device, value_dtype) if bias else None,
            None,
            *index,
        )

    for name, mask in matrices():
        yield Sample(arguments(mask, 5), name, small=mask.numel() < 100)
    masks = dict(matrices())
    for batch in (0, 1, 16, 17, 33, 64, 65, 130):
        yield Sample(arguments(masks["typical"], batch), f"batch_{batch}")
    for name in ("off_tiles", "one_row", "empty", "no_rows", "no_columns"):
        yield Sample(arguments(masks[name], 1), f"{name}_batch_1")
    for batch in (7, 100):
        yield Sample(arguments(masks["off_tiles"], batch), f"off_tiles_batch_{batch}")
    yield Sample(arguments(masks["off_tiles"], 3, 7), "leading_dimensions")
    yield Sample(arguments(masks["typical"]), "one_vector")
    yield Sample(arguments(masks["typical"], 9, bias=False), "no_bias")
    x, *rest = arguments(masks["typical"], 12)
    yield Sample((x[::2], *rest), "strided_rows")
    yield Sample((x.t().contiguous().t(), *rest), "strided_columns")
    yield Sample((x[1:].reshape(-1)[3:][: 10 * 160].view(10, 160), *rest), "offset")
    x, values, bias, _, *index = arguments(masks["tiny"], 6)
    probe = torch.zeros((), device=device, dtype=value_dtype).expand(masks["tiny"].shape)
    yield Sample((x, values, bias, probe, *index), "probe", small=True, promise=True)
    for name in ACTIVATIONS[1:]:
        option = {"activation": name}
        yield Sample(arguments(masks["tiny"], 6), f"tiny_{name}", option, small=True)
        for batch in (1, 7, 100):
            yield Sample(
                arguments(masks["off_tiles"], batch), f"off_tiles_{name}_batch_{batch}", option
            )
        yield Sample(arguments(masks["typical"], 9, bias=False), f"no_bias_{name}", option)
        yield Sample((x, values, bias, probe, *index), f"probe_{name}", option, promise=True)


def backward_samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    """The same of ``csr_linear_backward``, with and without the output of a ReLU."""
    for sample in samples(device, dtype):
        if sample.kwargs:
            continue  # the same tensors again
        x, values, bias, _, *index = sample.args
        rows = index[0].shape[0] - 1
        grad = torch.linspace(-1, 1, math.prod(x.shape[:-1]) * rows, device=device)
        grad = grad.sin().view(*x.shape[:-1], rows).to(dtype)
        mask = [True, True, bias is not None]
        yield Sample((grad, x, values, None, *index, mask), sample.id, small=sample.small)
        y = grad.flip(0).relu()
        gated = sample.id in ("typical", "tiny") or "off_tiles" in sample.id
        if gated and y.numel():
            y.view(-1)[-1] = math.nan
            yield Sample(
                (grad, x, values, y, *index, mask), f"{sample.id}_gated", small=sample.small
            )
        if sample.id == "typical":
            for i in range(3):
                only = [i == j for j in range(3)]
                yield Sample((grad, x, values, None, *index, only), f"only_{i}")
            strided = grad.t().contiguous().t()
            yield Sample((strided, x, values, None, *index, mask), "strided_grad")
            strided_y = y.t().contiguous().t()
            yield Sample((grad, x, values, strided_y, *index, mask), "strided_y")
            expanded = grad[:1].expand(grad.shape)
            yield Sample((expanded, x, values, None, *index, mask), "expanded_grad")


def _arguments() -> tuple[Any, ...]:
    index = index_from_mask(torch.eye(3, dtype=torch.bool))
    return torch.zeros(2, 3), torch.zeros(3), torch.zeros(3), None, *index


def errors() -> Iterator[tuple[Any, type[Exception], str]]:
    """Wrong arguments of ``csr_linear``, the exception, and how its sentence begins."""
    x, values, bias, probe, *index = _arguments()
    yield (None, values, bias, probe, *index), TypeError, "Expected x to be a tensor"
    yield (x[:, :2], values, bias, probe, *index), ValueError, "Expected x to have 3 features"
    yield (x.long(), values, bias, probe, *index), TypeError, "Expected x to have dtype"
    yield (
        (x.double(), values, bias, probe, *index),
        TypeError,
        "Expected x and values to be float64",
    )
    yield (x, values.half(), bias, probe, *index), TypeError, "Expected values to have dtype"
    yield (x, values[:2], bias, probe, *index), ValueError, "Expected values to have shape"
    yield (x, values, bias[:2], probe, *index), ValueError, "Expected bias to have shape"
    yield (x, values, bias.double(), probe, *index), TypeError, "Expected bias to have dtype"
    yield (x, values, bias, torch.zeros(3), *index), ValueError, "Expected probe to have shape"
    wrong = [index[0], index[1].long(), *index[2:]]
    yield (x, values, bias, probe, *wrong), TypeError, "Expected col to have dtype torch.int32"
    short = [*index[:5], index[5][:1], index[6]]
    yield (x, values, bias, probe, *short), ValueError, "Expected col, col_t and perm to have 3"
    meta = x.to("meta")
    yield (meta, values, bias, probe, *index), ValueError, "Expected x to be on cpu like values"
    for wrong_name in ("tanh", None):
        sample = Sample((x, values, bias, probe, *index), "", {"activation": wrong_name})
        sentence = "Expected activation to be none, relu, gelu or gelu_tanh. Got "
        yield sample, ValueError, f"{sentence}{wrong_name!r}."


def backward_errors() -> Iterator[tuple[tuple[Any, ...], type[Exception], str]]:
    """The same of ``csr_linear_backward``."""
    x, values, _, _, *index = _arguments()
    grad, mask = torch.zeros(2, 3), [True, True, True]
    rest = (*index, mask)
    yield (grad[:1], x, values, None, *rest), ValueError, "Expected grad to have shape"
    yield (grad.double(), x, values, None, *rest), TypeError, "Expected grad to have dtype"
    yield (grad, x, values, grad[:1], *rest), ValueError, "Expected y to have shape"
    yield (grad, x, values, grad.double(), *rest), TypeError, "Expected y to have dtype"
    yield (grad, x, values, grad.to("meta"), *rest), ValueError, "Expected y to be on cpu like x"
    short = (grad, x, values, None, *index, [True])
    yield short, ValueError, "Expected output_mask to have 3 entries"
