"""``SparseLayer``: what sparse modules share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from sparsekern._checks import check_fraction, check_mask
from sparsekern.formats import FORMATS, BsrFormat, SparseFormat, TopologyChange, choose_format
from sparsekern.ops import bsr, condensed
from sparsekern.ops import mask as mask_ops
from sparsekern.patterns import UNSTRUCTURED, Block, FanIn, Pattern

Layer = TypeVar("Layer", bound="SparseLayer")


class SparseLayer(nn.Module):
    """A module whose weight lives in ``format``; the trainable numbers are ``format.parameter``.

    ``weight`` is the dense weight with zeros: it can be read and differentiated, but writing into
    it is lost, and assigning it raises.
    """

    format: SparseFormat
    bias: nn.Parameter | None

    def _set_weight(self, format: SparseFormat, bias: Tensor | None) -> None:
        """Takes a format and a bias; ``nn.Module.__init__`` comes first."""
        self.format = format
        if bias is None or isinstance(bias, nn.Parameter):
            self.register_parameter("bias", bias)
        else:
            self.bias = nn.Parameter(bias)

    @property
    def weight(self) -> Tensor:
        """The dense weight with zeros, differentiable; a new tensor at each call."""
        return self.format.to_dense()

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "weight":
            kind = type(self).__name__
            raise AttributeError(
                f"Expected the weight of a {kind} to be changed by set_mask(), "
                f"{kind}.from_dense() or its format's parameter. Got an assignment."
            )
        super().__setattr__(name, value)

    @property
    def density(self) -> float:
        """Fraction of kept weights."""
        return self.format.density

    def mask(self) -> Tensor:
        """Which weights are kept: bool, shaped like ``weight``."""
        return self.format.mask()

    def set_mask(self, mask: Tensor) -> TopologyChange:
        """Changes which weights are kept (see :meth:`SparseFormat.set_mask`).

        An optimiser's state must follow: ``sparsekern.optim.move_state(optimizer,
        layer.format.parameter, change)``. A Pruner does both.
        """
        return self.format.set_mask(mask)

    def to_dense(self) -> nn.Module:
        """A plain layer with the same outputs, zeros included."""
        raise NotImplementedError

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """A plain ``weight`` of a dense checkpoint takes the current mask."""
        error_msgs: list[str] = args[-1] if args else kwargs["error_msgs"]
        dense = state_dict.pop(prefix + "weight", None)
        if isinstance(dense, Tensor):
            self._take_dense(dense, state_dict, prefix, error_msgs)
        elif dense is not None:
            got = type(dense).__name__
            error_msgs.append(f"Expected {prefix}weight to be a tensor. Got {got}.")
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
        masked = self.format.like(dense.to(self.format.parameter), self.mask())
        stored: Mapping[str, Tensor] = masked.state_dict()
        state_dict.update({f"{prefix}format.{key}": value for key, value in stored.items()})


def format_from_dense(
    weight: Tensor,
    density: float | None,
    mask: Tensor | None,
    format: str,
    block_shape: tuple[int, int] | None = None,
) -> SparseFormat:
    """A format of a dense weight: with a mask, with the largest ``density`` of it, or with what is
    not zero; of whole blocks if ``block_shape`` is given.

    Raises:
        TypeError, ValueError: a density outside of [0, 1]; a mask of another shape or dtype; both
            given; an unknown format.
    """
    if density is not None and mask is not None:
        raise ValueError("Expected density or mask, not both. Got both.")
    if density is not None:
        check_fraction(density, "density")
        mask = select(weight.abs().float(), density, format, block_shape)
    elif mask is None:
        mask = weight != 0
    check_mask(mask, tuple(weight.shape), weight.device)
    return build_stored(weight, mask, format, pattern_of(block_shape))


def select(
    scores: Tensor, density: float, format: str, block_shape: tuple[int, int] | None
) -> Tensor:
    """The mask of the weights, or of the blocks, of highest score; "condensed" has as many in every
    row."""
    if block_shape is None:
        if format == "condensed":
            rows = scores.flatten(1)
            return mask_ops.topk_rows(scores, FanIn().count(density, rows.shape[1]))
        if format == "bsr":
            raise ValueError(
                "Expected block_shape with format='bsr' and a density, for example (16, 16). "
                "Got None."
            )
        return mask_ops.topk(scores, round(density * scores.numel()))
    block = block_pattern(block_shape)
    block.check_divides(tuple(scores.shape))
    return bsr.block_topk(scores, round(density * scores.numel() / block.numel), block.shape)


def build_stored(
    weight: Tensor,
    mask: Tensor,
    format: str,
    pattern: Pattern,
    master: str = "compact",
) -> SparseFormat:
    """The format of that name; "auto" follows the fixed rule. The mask must be one of the pattern,
    whatever the format."""
    if format == "auto":
        numel = mask.numel()
        density = int(torch.count_nonzero(mask)) / numel if numel else 1.0
        format = choose_format(density, mask.device, master, pattern)
    if isinstance(pattern, FanIn):
        condensed.fan_in(mask)
    if not isinstance(pattern, Block):
        return FORMATS[format].from_dense(weight, mask)
    pattern.check_divides(tuple(weight.shape))
    if format == "bsr":
        return BsrFormat.from_dense(weight, mask, block_shape=pattern.shape)
    bsr.block_mask(bsr.as_matrix(mask), pattern.shape)
    return FORMATS[format].from_dense(weight, mask)


def pattern_of(block_shape: tuple[int, int] | None) -> Pattern:
    """What a layer's ``block_shape`` asks for."""
    return UNSTRUCTURED if block_shape is None else block_pattern(block_shape)


def block_pattern(block_shape: object) -> Block:
    """The pattern of blocks of that shape. Raises TypeError or ValueError for anything else."""
    if not isinstance(block_shape, (tuple, list)) or len(block_shape) != 2:
        raise TypeError(f"Expected block_shape to be two integers. Got {block_shape!r}.")
    return Block(*block_shape)
