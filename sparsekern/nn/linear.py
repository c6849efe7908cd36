"""``SparseLinear``: ``torch.nn.Linear`` with a sparse weight."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sparsekern._checks import check_fraction, check_positive
from sparsekern.formats import FORMATS, SparseFormat, TopologyChange, choose_format
from sparsekern.nn.autocast import as_under_autocast
from sparsekern.nn.init import dense_linear_, sparse_fan_in_
from sparsekern.ops import mask as mask_ops


class SparseLinear(nn.Module):
    """``y = x W^T + bias`` with a sparse ``W`` ``[out_features, in_features]``.

    Drop-in for :class:`torch.nn.Linear`. The weight lives in ``format`` (a module of its own); the
    trainable numbers are ``format.parameter``. ``weight`` is the dense weight with zeros: it can be
    read and differentiated, but writing into it is lost, and assigning it raises.

    Args:
        in_features, out_features: sizes, at least 1.
        bias: whether a bias is learned.
        density: fraction of weights kept, in [0, 1], at random positions.
        format: "auto" (the rule of :func:`sparsekern.formats.choose_format`), "csr" or "masked".
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
        init: str = "dense",
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_positive(in_features, "in_features")
        check_positive(out_features, "out_features")
        check_fraction(density, "density")
        if init not in ("dense", "sparse_fan_in"):
            raise ValueError(f"Expected init to be dense or sparse_fan_in. Got {init!r}.")
        weight = torch.empty(out_features, in_features, device=device, dtype=dtype)
        offset = torch.empty(out_features, device=device, dtype=dtype) if bias else None
        dense_linear_(weight, offset, generator)
        scores = torch.rand(weight.shape, generator=generator, device=weight.device)
        mask = mask_ops.topk(scores, round(density * weight.numel()))
        if init == "sparse_fan_in":
            sparse_fan_in_(weight, mask)
        self._build(_format_of(format, mask).from_dense(weight, mask), offset)

    def _build(self, format: SparseFormat, bias: Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = format.shape
        self.format = format
        if bias is None or isinstance(bias, nn.Parameter):
            self.register_parameter("bias", bias)
        else:
            self.bias = nn.Parameter(bias)

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
    ) -> SparseLinear:
        """A sparse copy of a dense layer; ``linear`` itself is left alone.

        Give ``mask`` (bool, True = kept), or ``density`` to keep the weights of largest magnitude;
        with neither, the non-zero weights are kept.

        Raises:
            TypeError, ValueError: not a Linear; a density outside of [0, 1]; a mask of another
                shape or dtype; both given; an unknown format.
        """
        if not isinstance(linear, nn.Linear):
            raise TypeError(
                f"Expected linear to be a torch.nn.Linear. Got {type(linear).__name__}."
            )
        if density is not None and mask is not None:
            raise ValueError("Expected density or mask, not both. Got both.")
        weight = linear.weight.detach()
        if density is not None:
            check_fraction(density, "density")
            mask = mask_ops.topk(weight.abs().float(), round(density * weight.numel()))
        elif mask is None:
            mask = weight != 0
        bias = None if linear.bias is None else linear.bias.detach().clone()
        layer = cls.from_format(_format_of(format, mask).from_dense(weight, mask), bias)
        return layer.train(linear.training)

    @property
    def weight(self) -> Tensor:
        """The dense weight with zeros, differentiable; a new tensor at each call."""
        return self.format.to_dense()

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "weight":
            raise AttributeError(
                "Expected the weight of a SparseLinear to be changed by set_mask(), "
                "SparseLinear.from_dense() or its format's parameter. Got an assignment."
            )
        super().__setattr__(name, value)

    @property
    def density(self) -> float:
        """Fraction of kept weights."""
        return self.format.density

    def mask(self) -> Tensor:
        """Which weights are kept: bool ``[out_features, in_features]``."""
        return self.format.mask()

    def set_mask(self, mask: Tensor) -> TopologyChange:
        """Changes which weights are kept (see :meth:`SparseFormat.set_mask`).

        An optimiser's state must follow: ``sparsekern.optim.move_state(optimizer,
        layer.format.parameter, change)``. A Pruner does both.
        """
        return self.format.set_mask(mask)

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
        return linear.train(self.training)

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(x, Tensor) and x.is_nested:
            return on_nested(self.forward, x)
        return self.format.linear(as_under_autocast(x), self.bias)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """A plain ``weight`` of a dense checkpoint takes the current mask."""
        dense = state_dict.pop(prefix + "weight", None)
        if dense is not None:
            self._take_dense(dense, state_dict, prefix, args[-1] if args else kwargs["error_msgs"])
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _take_dense(
        self, dense: Tensor, state_dict: dict[str, Any], prefix: str, error_msgs: list[str]
    ) -> None:
        if dense.shape != self.format.shape:
            error_msgs.append(
                f"Expected {prefix}weight to have shape {self.format.shape}. "
                f"Got {tuple(dense.shape)}."
            )
            return
        masked = type(self.format).from_dense(dense.to(self.format.parameter), self.mask())
        stored: Mapping[str, Tensor] = masked.state_dict()
        state_dict.update({f"{prefix}format.{key}": value for key, value in stored.items()})

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


def _format_of(name: str, mask: Tensor) -> type[SparseFormat]:
    if name == "auto":
        numel = mask.numel()
        density = int(torch.count_nonzero(mask)) / numel if numel else 1.0
        name = choose_format(density, mask.device)
    return FORMATS[name]
