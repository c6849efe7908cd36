"""The installable rivals, each behind one function from a dense layer and a mask."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

Maker = Callable[[nn.Linear, Tensor], nn.Module]


class TorchCsr(nn.Module):
    """torch's own CSR product; it has no gradient for the values, so forward only."""

    def __init__(self, linear: nn.Linear, mask: Tensor) -> None:
        super().__init__()
        self.weight = (linear.weight.detach() * mask).to_sparse_csr()
        self.bias = linear.bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        return (self.weight @ x.t()).t() + self.bias


def torch_csr(linear: nn.Linear, mask: Tensor) -> nn.Module:
    return TorchCsr(linear, mask)


def sparseprop(linear: nn.Linear, mask: Tensor) -> nn.Module:
    """sparseprop 0.1.14 (SparseProp, 2023)."""
    from sparseprop.modules import SparseLinear  # type: ignore[import-not-found]

    masked = nn.Linear(linear.in_features, linear.out_features)
    masked.weight.data = linear.weight.detach() * mask
    masked.bias.data = linear.bias.detach().clone()
    return SparseLinear.from_dense(masked)


def sparseprop_conv2d(conv: nn.Conv2d, mask: Tensor, over_batch: bool) -> nn.Module:
    """sparseprop's convolution: its vectors run over the pixels of a row, or over the batch."""
    from sparseprop.modules import SparseConv2d

    masked = copy.deepcopy(conv)
    masked.weight.data *= mask
    return SparseConv2d.from_dense(masked, vectorizing_over_on=over_batch)


def sparselab(linear: nn.Linear, mask: Tensor) -> nn.Module:
    """sparselab 0.2.2; its own random mask of the same density (it takes no other)."""
    from sparselab import SparseLinear  # type: ignore[import-not-found]

    density = float(mask.float().mean())
    return SparseLinear(linear.in_features, linear.out_features, sparsity=1 - density)


RIVALS: dict[str, Maker] = {
    "torch_csr": torch_csr,
    "sparseprop": sparseprop,
    "sparselab": sparselab,
}
FORWARD_ONLY = {"torch_csr"}


def installed(linear: nn.Linear, mask: Tensor) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """The rivals that can be imported here, and why the others cannot."""
    layers, missing = {}, {}
    for name, make in RIVALS.items():
        try:
            layers[name] = make(linear, mask)
        except Exception as error:  # a rival may fail in any way; the table says so
            missing[name] = f"{type(error).__name__}: {error}"
    return layers, missing


def forward_only(name: str) -> bool:
    return name in FORWARD_ONLY


def same_result(layer: nn.Module, linear: nn.Linear, mask: Tensor, x: Tensor) -> bool:
    """Whether the rival computes what we compute (a wrong result is not a speed)."""
    right = nn.functional.linear(x, linear.weight * mask, linear.bias)
    with torch.no_grad():
        return bool(torch.allclose(layer(x), right, atol=1e-2, rtol=1e-2))
