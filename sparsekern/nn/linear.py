"""``SparseLinear``: ``torch.nn.Linear`` with a sparse weight."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from sparsekern._checks import check_fraction, check_positive, check_weight_dtype
from sparsekern.formats import SparseFormat
from sparsekern.nn.autocast import as_under_autocast
from sparsekern.nn.init import dense_linear_, sparse_fan_in_
from sparsekern.nn.layer import SparseLayer, build_stored, format_from_dense, pattern_of, select


class SparseLinear(SparseLayer):
    """``y = x W^T + bias`` with a sparse ``W`` ``[out_features, in_features]``.

    Drop-in for :class:`torch.nn.Linear`; see :class:`SparseLayer` for ``weight`` and ``format``.

    Args:
        in_features, out_features: sizes, at least 1.
        bias: whether a bias is learned.
        density: fraction of weights kept, in [0, 1], at random positions.
        format: "auto" (the rule of :func:`sparsekern.formats.choose_format`), "csr", "bsr",
            "condensed" (as many weights of every output) or "masked".
        block_shape: ``(h, w)`` to keep whole blocks of outputs by inputs; "bsr" needs it.
        init: "dense" (torch's own) or "sparse_fan_in" (rows rescaled to their real fan-in).
        generator: source of the random mask and weights; None is torch's global one.

    Shapes: ``x`` ``[..., in_features]`` to ``[..., out_features]`` of the same dtype.

    >>> layer = SparseLinear(8, 4, density=0.25)
    >>> layer(torch.zeros(2, 8)).shape, layer.density
    (torch.Size([2, 4]), 0.25)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        density: float = 0.1,
        format: str = "auto",
        block_shape: tuple[int, int] | None = None,
        init: str = "dense",
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_positive(in_features, "in_features")
        check_positive(out_features, "out_features")
        check_fraction(density, "density")
        check_weight_dtype(dtype)
        if init not in ("dense", "sparse_fan_in"):
            raise ValueError(f"Expected init to be dense or sparse_fan_in. Got {init!r}.")
        weight = torch.empty(out_features, in_features, device=device, dtype=dtype)
        offset = torch.empty(out_features, device=device, dtype=dtype) if bias else None
        dense_linear_(weight, offset, generator)
        scores = torch.rand(weight.shape, generator=generator, device=weight.device)
        mask = select(scores, density, format, block_shape)
        if init == "sparse_fan_in":
            sparse_fan_in_(weight, mask)
        self._build(build_stored(weight, mask, format, pattern_of(block_shape)), offset)

    def _build(self, format: SparseFormat, bias: Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = format.shape
        self._set_weight(format, bias)

    @classmethod
    def from_format(cls, format: SparseFormat, bias: Tensor | None = None) -> SparseLinear:
        """A layer around an existing format, which may be shared (tied weights)."""
        layer = cls.__new__(cls)
        layer._build(format, bias)
        return layer

    @classmethod
    def from_dense(
        cls,
        linear: nn.Linear,
        density: float | None = None,
        *,
        mask: Tensor | None = None,
        format: str = "auto",
        block_shape: tuple[int, int] | None = None,
    ) -> SparseLinear:
        """A sparse copy of a dense layer; ``linear`` itself is left alone.

        Give ``mask`` (bool, True = kept), or ``density`` to keep the weights of largest magnitude;
        with neither, the non-zero weights are kept. ``block_shape`` ``(h, w)`` keeps whole
        blocks of outputs by inputs, those of largest sum; a mask must then be made of them. With
        ``format="bsr"`` and no ``block_shape``, it is the largest square that a mask is made of.

        Raises:
            TypeError, ValueError: not a Linear; a density outside of [0, 1]; a mask of another
                shape or dtype; both given; an unknown format; blocks that do not divide the weight,
                or that the mask keeps in part.
        """
        if not isinstance(linear, nn.Linear):
            raise TypeError(
                f"Expected linear to be a torch.nn.Linear. Got {type(linear).__name__}."
            )
        stored = format_from_dense(linear.weight.detach(), density, mask, format, block_shape)
        bias = None if linear.bias is None else linear.bias.detach().clone()
        layer = cls.from_format(stored, bias)
        return layer.train(linear.training)

    def to_dense(self) -> nn.Linear:
        """A plain Linear with the same outputs, zeros included."""
        parameter = self.format.parameter
        linear = nn.Linear(
            self.in_features,
            self.out_features,
            bias=self.bias is not None,
            device=parameter.device,
            dtype=parameter.dtype,
        )
        with torch.no_grad():
            linear.weight.copy_(self.weight)
            if self.bias is not None:
                linear.bias.copy_(self.bias)
                linear.bias.requires_grad_(self.bias.requires_grad)
        linear.weight.requires_grad_(parameter.requires_grad)
        return linear.train(self.training)

    def forward(self, x: Tensor, activation: str = "none") -> Tensor:
        """``activation`` ("none", "relu", "gelu", "gelu_tanh") is what is applied to ``y``."""
        if isinstance(x, Tensor) and x.is_nested:
            return on_nested(partial(self.forward, activation=activation), x)
        if activation != "none":
            return self.format.activated_linear(as_under_autocast(x), self.bias, activation)
        return self.format.linear(as_under_autocast(x), self.bias)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}"
        )


def on_nested(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """A function of ``[..., features]`` on a nested tensor, as ``nn.TransformerEncoder`` makes one
    of a padded batch in eval; all rows in one call."""
    if x.layout == torch.jagged:
        offsets, lengths = x.offsets(), x.lengths()  # type: ignore[attr-defined]
        return torch.nested.nested_tensor_from_jagged(function(x.values()), offsets, lengths)
    parts = x.unbind()
    rows = function(torch.cat(parts))
    return torch.nested.as_nested_tensor(list(rows.split([part.shape[0] for part in parts])))
