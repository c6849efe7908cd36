"""``SparseTransposedLinear``: the ``Conv1D`` of Hugging Face's GPT-2 with a sparse weight."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sparsekern.formats import SparseFormat, TopologyChange
from sparsekern.nn.linear import SparseLinear
from sparsekern.ops import mask as mask_ops


def is_transposed_linear(module: nn.Module) -> bool:
    """Whether a module is ``transformers.pytorch_utils.Conv1D`` itself, found without importing
    transformers: ``y = x W + b`` with ``W`` ``[in, out]``."""
    kind = type(module)
    return kind.__name__ == "Conv1D" and kind.__module__ == "transformers.pytorch_utils"


class SparseTransposedLinear(SparseLinear):
    """``y = x W + bias`` with a sparse ``W`` ``[in_features, out_features]``.

    Stands for Hugging Face's ``Conv1D``: ``weight``, ``mask()`` and ``set_mask`` see the weight as
    that layer has it, while ``format`` holds ``W^T``, as it does for every linear layer.
    """

    dense_class: type[nn.Module]

    @classmethod
    def around(
        cls, format: SparseFormat, bias: Tensor | None, dense_class: type[nn.Module]
    ) -> SparseTransposedLinear:
        """A layer around a format; ``dense_class(out_features, in_features)`` is its dense twin."""
        layer = cls.__new__(cls)
        layer._build(format, bias)
        layer.dense_class = dense_class
        layer.nx, layer.nf = layer.in_features, layer.out_features
        return layer

    @property
    def weight(self) -> Tensor:
        """The dense weight ``[in_features, out_features]`` with zeros, differentiable."""
        return self.format.to_dense().t()

    def mask(self) -> Tensor:
        """Which weights are kept: bool ``[in_features, out_features]``."""
        return self.format.mask().t()

    def set_mask(self, mask: Tensor) -> TopologyChange:
        """See :meth:`SparseLinear.set_mask`; the mask is ``[in_features, out_features]``."""
        if isinstance(mask, Tensor) and mask.dtype == torch.uint8:
            mask = mask_ops.unpack_bits(mask, (self.in_features, self.out_features))
        return self.format.set_mask(mask.t() if isinstance(mask, Tensor) else mask)

    def to_dense(self) -> nn.Module:  # type: ignore[override]
        """A layer of the class this one stands for, with the same outputs, zeros included."""
        dense = self.dense_class(self.out_features, self.in_features)
        with torch.no_grad():
            dense.weight = nn.Parameter(
                self.weight.detach().contiguous(), self.format.parameter.requires_grad
            )
            if self.bias is not None:
                dense.bias = nn.Parameter(self.bias.detach().clone(), self.bias.requires_grad)
        return dense.train(self.training)

    def _take_dense(
        self, dense: Tensor, state_dict: dict[str, Any], prefix: str, error_msgs: list[str]
    ) -> None:
        if dense.ndim != 2 or dense.t().shape != self.format.shape:
            expected = tuple(reversed(self.format.shape))
            error_msgs.append(
                f"Expected {prefix}weight to have shape {expected}. Got {tuple(dense.shape)}."
            )
            return
        masked = type(self.format).from_dense(
            dense.t().contiguous().to(self.format.parameter), self.format.mask()
        )
        state_dict.update({f"{prefix}format.{k}": v for k, v in masked.state_dict().items()})
