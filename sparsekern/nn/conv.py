"""``SparseConv2d``: ``torch.nn.Conv2d`` with a sparse weight."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.utils import _pair

from sparsekern._checks import check_fraction, check_positive, check_weight_dtype
from sparsekern.formats import SparseFormat
from sparsekern.nn.autocast import as_under_autocast
from sparsekern.nn.init import dense_linear_, sparse_fan_in_
from sparsekern.nn.layer import SparseLayer, build_stored, format_from_dense, pattern_of, select
from sparsekern.ops._geometry import check_geometry

Size = int | tuple[int, ...]
PADDING_MODES = ("zeros", "reflect", "replicate", "circular")


class SparseConv2d(SparseLayer):
    """``y = conv2d(x, W) + bias`` with a sparse ``W`` ``[out, in / groups, kh, kw]``.

    Drop-in for :class:`torch.nn.Conv2d`; see :class:`SparseLayer` for ``weight`` and ``format``.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias,
            padding_mode: as of :class:`torch.nn.Conv2d`.
        density: fraction of weights kept, in [0, 1], at random positions.
        format: "auto" (the rule of :func:`sparsekern.formats.choose_format`), "csr", "bsr",
            "condensed" (as many weights of every output) or "masked".
        block_shape: ``(h, w)`` to keep whole blocks of outputs by inputs; "bsr" needs it.
        init: "dense" (torch's own) or "sparse_fan_in" (filters rescaled to their real fan-in).
        generator: source of the random mask and weights; None is torch's global one.

    Shapes: ``x`` ``[N, in, H, W]`` or ``[in, H, W]``; the output has the same number of dimensions,
    dtype and memory format.

    Raises:
        TypeError, ValueError: sizes, groups or padding that cannot be; a wrong density; an unknown
            name.

    >>> layer = SparseConv2d(16, 32, 3, padding=1, density=0.1)
    >>> layer(torch.zeros(2, 16, 8, 8)).shape
    torch.Size([2, 32, 8, 8])
    """

    def __init__(  # noqa: PLR0913 - those of torch.nn.Conv2d, and five
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size | str = 0,
        dilation: Size = 1,
        groups: int = 1,
        *,
        bias: bool = True,
        padding_mode: str = "zeros",
        density: float = 0.1,
        format: str = "auto",
        block_shape: tuple[int, int] | None = None,
        init: str = "dense",
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        for name, size in (
            ("in_channels", in_channels),
            ("out_channels", out_channels),
            ("groups", groups),
        ):
            check_positive(size, name)
        check_fraction(density, "density")
        check_weight_dtype(dtype)
        if init not in ("dense", "sparse_fan_in"):
            raise ValueError(f"Expected init to be dense or sparse_fan_in. Got {init!r}.")
        if in_channels % groups or out_channels % groups:
            raise ValueError(
                f"Expected groups to divide in_channels and out_channels, {in_channels} and "
                f"{out_channels}. Got {groups}."
            )
        geometry = _geometry(kernel_size, stride, padding, dilation, groups, padding_mode)
        shape = (out_channels, in_channels // groups, *geometry["kernel_size"])
        weight = torch.empty(shape, device=device, dtype=dtype)
        offset = torch.empty(out_channels, device=device, dtype=dtype) if bias else None
        dense_linear_(weight, offset, generator)
        scores = torch.rand(shape, generator=generator, device=weight.device)
        mask = select(scores, density, format, block_shape)
        if init == "sparse_fan_in":
            sparse_fan_in_(weight, mask)
        self._build(build_stored(weight, mask, format, pattern_of(block_shape)), offset, geometry)

    def _build(self, format: SparseFormat, bias: Tensor | None, geometry: dict[str, Any]) -> None:
        super().__init__()
        self.kernel_size = geometry["kernel_size"]
        self.stride, self.dilation = geometry["stride"], geometry["dilation"]
        self.padding, self.padding_mode = geometry["padding"], geometry["padding_mode"]
        self.groups = geometry["groups"]
        self.out_channels = format.shape[0]
        self.in_channels = format.shape[1] * self.groups
        self._set_weight(format, bias)

    @classmethod
    def from_format(
        cls, format: SparseFormat, conv: nn.Conv2d, bias: Tensor | None = None
    ) -> SparseConv2d:
        """A layer around an existing format, which may be shared, with the geometry of ``conv``."""
        layer = cls.__new__(cls)
        geometry = _geometry(
            conv.kernel_size,
            conv.stride,
            conv.padding,
            conv.dilation,
            conv.groups,
            conv.padding_mode,
        )
        layer._build(format, bias, geometry)
        return layer

    @classmethod
    def from_dense(
        cls,
        conv: nn.Conv2d,
        density: float | None = None,
        *,
        mask: Tensor | None = None,
        format: str = "auto",
        block_shape: tuple[int, int] | None = None,
    ) -> SparseConv2d:
        """A sparse copy of a dense layer; ``conv`` itself is left alone.

        Give ``mask`` (bool, True = kept), or ``density`` to keep the weights of largest magnitude;
        with neither, the non-zero weights are kept. ``block_shape`` ``(h, w)`` keeps whole
        blocks of outputs by inputs, those of largest sum; a mask must then be made of them. With
        ``format="bsr"`` and no ``block_shape``, it is the largest square that a mask is made of.

        Raises:
            TypeError, ValueError: not a Conv2d; a density outside of [0, 1]; a mask of another
                shape or dtype; both given; an unknown format; blocks that do not divide the weight,
                or that the mask keeps in part.
        """
        if not isinstance(conv, nn.Conv2d):
            raise TypeError(f"Expected conv to be a torch.nn.Conv2d. Got {type(conv).__name__}.")
        stored = format_from_dense(conv.weight.detach(), density, mask, format, block_shape)
        bias = None if conv.bias is None else conv.bias.detach().clone()
        return cls.from_format(stored, conv, bias).train(conv.training)

    def to_dense(self) -> nn.Conv2d:
        """A plain Conv2d with the same outputs, zeros included."""
        parameter = self.format.parameter
        conv = nn.Conv2d(
            self.in_channels,
            self.out_channels,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            bias=self.bias is not None,
            padding_mode=self.padding_mode,
            device=parameter.device,
            dtype=parameter.dtype,
        )
        with torch.no_grad():
            conv.weight.copy_(self.weight)
            if self.bias is not None and conv.bias is not None:
                conv.bias.copy_(self.bias)
                conv.bias.requires_grad_(self.bias.requires_grad)
        conv.weight.requires_grad_(parameter.requires_grad)
        return conv.train(self.training)

    def forward(self, x: Tensor, activation: str = "none") -> Tensor:
        """``activation`` ("none", "relu", "gelu", "gelu_tanh") is what is applied to ``y``."""
        if x.ndim == 3:
            return self.forward(x.unsqueeze(0), activation).squeeze(0)
        padding, around = self._padding()
        if around is not None:
            mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
            x = F.pad(x, around, mode)
        geometry: dict[str, Any] = {
            "stride": self.stride,
            "padding": padding,
            "dilation": self.dilation,
            "groups": self.groups,
        }
        if activation != "none":
            x = as_under_autocast(x)
            return self.format.activated_conv2d(x, self.bias, activation, **geometry)
        return self.format.conv2d(as_under_autocast(x), self.bias, **geometry)

    def _padding(self) -> tuple[tuple[int, int], list[int] | None]:
        """Zeros on both sides, and what is padded first: left, right, top, bottom."""
        if isinstance(self.padding, tuple):
            before = after = self.padding
        elif self.padding == "valid":
            before = after = (0, 0)
        else:
            total = [d * (k - 1) for d, k in zip(self.dilation, self.kernel_size, strict=True)]
            before = (total[0] // 2, total[1] // 2)
            after = (total[0] - before[0], total[1] - before[1])
        if before == after and self.padding_mode == "zeros":
            return before, None
        return (0, 0), [before[1], after[1], before[0], after[0]]

    def extra_repr(self) -> str:
        parts = [
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}",
            f"stride={self.stride}",
        ]
        defaults = {"padding": (0, 0), "dilation": (1, 1), "groups": 1, "padding_mode": "zeros"}
        for name, default in defaults.items():
            value = getattr(self, name)
            if value != default:
                parts.append(f"{name}={value}")
        return ", ".join([*parts, *([] if self.bias is not None else ["bias=False"])])


def _geometry(
    kernel_size: Size,
    stride: Size,
    padding: Size | str,
    dilation: Size,
    groups: int,
    padding_mode: str,
) -> dict[str, Any]:
    """The checked arguments, sizes as pairs."""
    pairs = {
        "kernel_size": tuple(_pair(kernel_size)),
        "stride": tuple(_pair(stride)),
        "dilation": tuple(_pair(dilation)),
    }
    if isinstance(padding, str):
        if padding not in ("same", "valid"):
            raise ValueError(f"Expected padding to be numbers, same or valid. Got {padding!r}.")
        if padding == "same" and pairs["stride"] != (1, 1):
            raise ValueError(f"Expected stride to be 1 with padding='same'. Got {pairs['stride']}.")
    else:
        padding = tuple(_pair(padding))
    if padding_mode not in PADDING_MODES:
        raise ValueError(
            f"Expected padding_mode to be one of {', '.join(PADDING_MODES)}. Got {padding_mode!r}."
        )
    zeros = (0, 0) if isinstance(padding, str) else padding
    check_geometry(pairs["kernel_size"], pairs["stride"], zeros, pairs["dilation"])
    return {**pairs, "padding": padding, "groups": groups, "padding_mode": padding_mode}
