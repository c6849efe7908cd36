"""``validate`` refuses whatever an index can be but right, in one sentence."""

from __future__ import annotations

import pytest
import torch

from sparsekern.formats import FORMATS
from sparsekern.formats.bsr import BsrFormat
from sparsekern.ops.csr import CsrIndex
from tests.broken_index import broken, ways

SHAPES = ((12, 16), (12, 8, 3, 3))
TENSORS = {
    "csr": CsrIndex._fields,
    "masked": CsrIndex._fields,
    "bsr": ("crow", "col", "crow_t", "col_t", "perm"),
}
CASES = [
    pytest.param(kind, name, way, id=f"{kind}-{name}-{way}")
    for kind, names in TENSORS.items()
    for name in names
    for way in ways(name)
]


@pytest.mark.parametrize("shape", SHAPES, ids=["linear", "conv2d"])
@pytest.mark.parametrize(("kind", "name", "way"), CASES)
def test_broken_indices(kind: str, name: str, way: str, shape: tuple[int, ...]) -> None:
    blocks = torch.rand(3, 4, *shape[2:], generator=torch.Generator().manual_seed(0)) < 0.5
    blocks[:2, :2] = True  # two entries in the first row, and in the first column
    mask = blocks.repeat_interleave(4, 0).repeat_interleave(shape[1] // 4, 1)
    if kind == "bsr":
        stored = BsrFormat.from_dense(torch.randn(shape), mask, block_shape=(4, shape[1] // 4))
    else:
        stored = FORMATS[kind].from_dense(torch.randn(shape), mask)
        if kind == "masked":
            stored.variant = "csr"  # brings an index
    stored.validate()
    tensor = getattr(stored, name)
    if tensor.numel() == 0:
        return  # panel starts of a convolution
    tensor.copy_(broken(tensor, ways(name)[way]))
    with pytest.raises(ValueError, match=r"^Expected [^\n]*\. Got [^\n]*\.$"):
        stored.validate()


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0), (0, 4, 3, 3)])
@pytest.mark.parametrize("name", ["csr", "condensed", "masked"])
def test_a_layer_of_nothing_is_whole(name: str, shape: tuple[int, ...]) -> None:
    stored = FORMATS[name].from_dense(torch.zeros(shape), torch.zeros(shape, dtype=torch.bool))
    stored.validate()
