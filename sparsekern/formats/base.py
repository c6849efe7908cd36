"""``SparseFormat``: what every format promises."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from sparsekern._checks import check_device, check_mask, check_shape
from sparsekern._extension import native
from sparsekern._registry import Registry
from sparsekern.ops import csr
from sparsekern.ops import mask as mask_ops
from sparsekern.ops._activation import activate
from sparsekern.patterns import UNSTRUCTURED, Pattern

if TYPE_CHECKING:
    from sparsekern.formats.plan import LayerPlan

FORMATS: Registry[type[SparseFormat]] = Registry("format")

FORMAT_VERSION = 1  # of the keys and meaning of a format's state_dict


@dataclass(frozen=True)
class FormatBytes:
    """Bytes a format holds: trainable numbers, and all indices and layouts."""

    weight: int
    index: int

    @property
    def total(self) -> int:
        return self.weight + self.index


@dataclass(frozen=True)
class TopologyChange:
    """What a change of mask did to a format's parameter; tells how per-weight state moves.

    ``positions`` (compact formats) holds, for every element of the new parameter, its position in
    the old one (of ``old_numel`` elements), or -1 for a grown weight. ``kept`` (dense masters) is
    True where a weight was active before and after. Exactly one of the two is set.
    """

    positions: Tensor | None = None
    kept: Tensor | None = None
    old_numel: int | None = None

    def move(self, state: Tensor) -> Tensor:
        """Per-weight state after the change: kept weights keep theirs, grown ones start at zero."""
        if self.positions is not None:
            old = state.flatten()
            if old.numel() == 0:
                return old.new_zeros(self.positions.shape)
            moved = old[self.positions.clamp(min=0).long()]
            return torch.where(self.positions >= 0, moved, moved.new_zeros(()))
        assert self.kept is not None
        return torch.where(self.kept.view(state.shape), state, state.new_zeros(()))

    def move_(self, state: Tensor) -> None:
        """The same in place, for a change that keeps the number of elements."""
        if not state.is_contiguous() or state.element_size() > 8:
            state.copy_(self.move(state).view(state.shape))
        elif self.positions is not None:
            csr.move_(state.view(-1), self.positions.flatten())
        elif state.is_floating_point() and state.element_size() >= 2:
            assert self.kept is not None
            mask_ops.apply_(state, mask_ops.pack_bits(self.kept))
        else:
            state.copy_(self.move(state))


def keep_module_path(*_: object) -> None:
    """A forward hook that does nothing and is never called, as formats are not called themselves.

    That a hook is there at all keeps ``nn.TransformerEncoderLayer`` in eval from its fast path,
    which multiplies by ``linear1.weight`` itself, so that no sparse kernel would run.
    """


class SparseFormat(nn.Module, ABC):
    """Storage of one sparse weight: a Parameter for the trainable numbers, buffers for the index.

    ``parameter`` is what an optimiser sees. Compact formats (``master = "compact"``) keep only the
    kept weights in it; dense masters keep the dense shape for the whole run.
    """

    name: ClassVar[str]
    master: ClassVar[str]
    shape: tuple[int, ...]
    version: Tensor

    def __init__(self, shape: tuple[int, ...], device: torch.device | None = None) -> None:
        super().__init__()
        native.warn_once()
        self.shape = tuple(shape)
        version = torch.tensor(FORMAT_VERSION, dtype=torch.int32, device=device)
        self.register_buffer("version", version)
        self._probe: Tensor | None = None
        self.register_forward_hook(keep_module_path)
        self._wanted = self._variant = "auto"
        self._measured: LayerPlan | None = None

    @classmethod
    @abstractmethod
    def from_dense(cls, weight: Tensor, mask: Tensor | None = None) -> SparseFormat:
        """A new format that holds ``weight`` where ``mask`` (default: its non-zeros) is True."""

    def like(self, weight: Tensor, mask: Tensor) -> SparseFormat:
        """:meth:`from_dense` with what else this format was made with."""
        return type(self).from_dense(weight, mask)

    @property
    def pattern(self) -> Pattern:
        """What masks this format can hold."""
        return UNSTRUCTURED

    @property
    @abstractmethod
    def parameter(self) -> nn.Parameter:
        """The trainable numbers."""

    @abstractmethod
    def adopt(self, parameter: nn.Parameter) -> None:
        """Moves the trainable numbers into an existing Parameter object, which an optimiser may
        hold already; its gradient is dropped."""

    @abstractmethod
    def to_dense(self) -> Tensor:
        """The weight with zeros, exact and differentiable."""

    @abstractmethod
    def mask(self, among: Tensor | None = None) -> Tensor:
        """Which weights are kept: bool of the weight's shape.

        ``among`` (bool ``[nnz]``, in the order of :meth:`active_values`) leaves only those of the
        kept weights for which it is True.
        """

    @abstractmethod
    def active_values(self, dense_or_parameter: Tensor | None = None) -> Tensor:
        """``[nnz]`` numbers of the kept weights in row-major order of the mask: the weights
        themselves, or those of a tensor shaped like the parameter (a gradient, a momentum)."""

    @abstractmethod
    def set_mask(self, mask: Tensor) -> TopologyChange:
        """Changes the topology. Kept weights keep their values, grown ones are zero. With an equal
        number of kept weights every tensor is changed in place (no recompilation).

        ``mask`` is bool of the weight's shape, or uint8 as :func:`sparsekern.ops.mask.pack_bits`
        packs it.
        """

    @abstractmethod
    def linear(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """``y = x W^T + bias``."""

    def activated_linear(self, x: Tensor, bias: Tensor | None, activation: str) -> Tensor:
        """``y = activation(x W^T + bias)``, "none", "relu", "gelu" or "gelu_tanh"; formats whose
        kernels apply it themselves say how."""
        return activate(self.linear(x, bias), activation)

    @abstractmethod
    def conv2d(
        self,
        x: Tensor,
        bias: Tensor | None = None,
        *,
        stride: tuple[int, int] = (1, 1),
        padding: tuple[int, int] = (0, 0),
        dilation: tuple[int, int] = (1, 1),
        groups: int = 1,
    ) -> Tensor:
        """``y = conv2d(x, W) + bias`` for a weight of four dimensions; ``x`` ``[N, C, H, W]``."""

    def activated_conv2d(
        self, x: Tensor, bias: Tensor | None, activation: str, **geometry: Any
    ) -> Tensor:
        """``y = activation(conv2d(x, W) + bias)``, as for :meth:`activated_linear`."""
        return activate(self.conv2d(x, bias, **geometry), activation)

    @property
    @abstractmethod
    def nnz(self) -> int:
        """Number of kept weights."""

    @property
    @abstractmethod
    def nbytes(self) -> FormatBytes:
        """Bytes of the parameter, and of every index and layout."""

    @abstractmethod
    def validate(self) -> None:
        """Raises ValueError that names the broken invariant, if one is broken."""

    @property
    def numel(self) -> int:
        """Number of weights of the dense layer."""
        return torch.Size(self.shape).numel()

    @property
    def density(self) -> float:
        """Fraction of kept weights."""
        return self.nnz / self.numel if self.numel else 1.0

    # Which kernel runs.

    @property
    @abstractmethod
    def variants(self) -> tuple[str, ...]:
        """The kernels that ``variant`` can name."""

    @property
    def known_variants(self) -> tuple[str, ...]:
        """Those of every device, which a plan may name."""
        return self.variants

    @property
    @abstractmethod
    def running(self) -> str:
        """The kernel that runs now, whoever chose it."""

    @property
    def variant(self) -> str:
        """What ops are asked for: one of ``variants``, or "auto", the fixed rule.

        Assigning it changes no Parameter and no stored buffer. Raises ValueError for unknown names.
        """
        return self._variant

    @variant.setter
    def variant(self, name: str) -> None:
        self._check_variant(name)
        self._wanted, self._measured = name, None
        self._choose_variant()

    @property
    def measured(self) -> LayerPlan | None:
        """What :func:`sparsekern.tune` measured, if its choice was taken."""
        return self._measured

    def take_measured(self, measured: LayerPlan) -> None:
        """Runs a measured variant while the density is the one it was measured at, else the rule.

        That depends on the present density alone, so a resumed run chooses as the first one did.
        """
        self._check_variant(measured.variant, self.known_variants)
        self._wanted, self._measured = "auto", measured
        self._choose_variant()

    def _choose_variant(self) -> None:
        """Decides again; called when the wish or the density has changed."""
        measured, here = self._measured, ("auto", *self.variants)  # on this kind of device
        holds = measured and measured.variant in here and measured.holds_at(self.density)
        self._variant = measured.variant if measured and holds else self._wanted

    def _check_variant(self, name: str, known: tuple[str, ...] | None = None) -> None:
        known = known or self.variants
        if name != "auto" and name not in known:
            raise ValueError(
                f"Expected variant of format {self.name!r} to be auto or one of "
                f"{', '.join(known)}. Got {name!r}."
            )

    @property
    def fuses(self) -> bool:
        """Whether the kernel that runs applies activations before it stores its outputs."""
        return False

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Moves and converts as every module; what runs on another kind of device is chosen anew,
        and what was measured on this one is forgotten."""
        before = self.parameter.device.type
        super()._apply(fn, recurse)
        after = self.parameter.device.type
        if after != before and "meta" not in (before, after):  # nothing to choose by on meta
            self._measured, self._probe = None, None
            if self._wanted not in self.variants:
                self._wanted = "auto"
            self._choose_variant()
        return self

    # The dense gradient, for methods that grow weights by it.

    def arm_dense_grad(self, then: Callable[[Tensor], None] | None = None) -> None:
        """From now on every backward pass also adds up the gradient of the full dense weight.

        ``then`` is given that of each backward pass, shaped like the weight, as soon as it is
        there, and nothing is kept.
        """
        zero = torch.zeros((), dtype=self.parameter.dtype, device=self.parameter.device)
        if zero.dtype in (torch.bfloat16, torch.float16):
            zero = zero.float()
        self._probe = zero.expand(self._matrix_shape()).detach().requires_grad_()
        if then is not None:
            self._probe.register_post_accumulate_grad_hook(partial(self._hand_over, then))

    def _hand_over(self, then: Callable[[Tensor], None], probe: Tensor) -> None:
        gradient, probe.grad = probe.grad, None
        assert gradient is not None
        then(gradient.view(self.shape))

    def take_dense_grad(self) -> Tensor | None:
        """The dense gradient since :meth:`arm_dense_grad`, shaped like the weight; disarms.

        None if it was not armed or no backward pass came.
        """
        probe, self._probe = self._probe, None
        if probe is None or probe.grad is None:
            return None
        return probe.grad.view(self.shape)

    def _taps(self) -> int | None:
        """Size of a convolution's kernel, or None for a linear layer."""
        return math.prod(self.shape[2:]) if len(self.shape) > 2 else None

    def _matrix_shape(self) -> tuple[int, int]:
        return self.shape[0], math.prod(self.shape[1:])

    def _check_mask(self, mask: Tensor) -> Tensor:
        if isinstance(mask, Tensor) and mask.dtype == torch.uint8:
            check_shape(mask, "mask", ((self.numel + 7) // 8,))
            check_device(mask, "mask", self.parameter.device, "weight")
            if self.numel % 8:
                mask = mask.clone()
                mask[-1] &= 255 >> (-self.numel % 8)
        else:
            check_mask(mask, self.shape, self.parameter.device)
        return mask

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """Adopts the topology of a checkpoint of the same format; refuses any other."""
        error_msgs: list[str] = args[-1] if args else kwargs["error_msgs"]
        own = set(self._persistent_names())
        found = {
            key[len(prefix) :]
            for key in state_dict
            if key.startswith(prefix) and "." not in key[len(prefix) :]
        }
        reason = self._refusal(state_dict, prefix, own, found)
        if reason is not None:
            error_msgs.append(reason)
            return
        if own <= found:
            self._prepare_load(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        if own <= found:
            self._finish_load()

    def _persistent_names(self) -> list[str]:
        buffers = [key for key in self._buffers if key not in self._non_persistent_buffers_set]
        return [*self._parameters, *buffers]

    def _refusal(
        self, state_dict: Mapping[str, Any], prefix: str, own: set[str], found: set[str]
    ) -> str | None:
        if found and found != own and "version" in found:
            return (
                f"Expected {prefix[:-1]} to be of format {self.name!r} with keys "
                f"{', '.join(sorted(own))}. Got {', '.join(sorted(found))}: convert the layer to "
                "the checkpoint's format first."
            )
        for key in sorted(own & found):
            value = state_dict[prefix + key]
            if not isinstance(value, Tensor):
                return f"Expected {prefix}{key} to be a tensor. Got {type(value).__name__}."
        if "version" in found:
            version = state_dict[prefix + "version"].tolist()
            if version != FORMAT_VERSION:
                return (
                    f"Expected {prefix}version to be {FORMAT_VERSION}. Got {version}, written by "
                    "another version of sparsekern."
                )
        if found == own:
            return self._refuse_content(state_dict, prefix)
        return None

    def _refuse_content(self, state_dict: Mapping[str, Any], prefix: str) -> str | None:
        """A sentence if the checkpoint's tensors cannot be those of this layer."""
        return None

    @abstractmethod
    def _prepare_load(self, state_dict: Mapping[str, Any], prefix: str) -> None:
        """Gives parameters and buffers the sizes of the checkpoint."""

    @abstractmethod
    def _finish_load(self) -> None:
        """Rebuilds what is not stored."""

    def extra_repr(self) -> str:
        return f"shape={self.shape}, nnz={self.nnz}, density={self.density:.4g}"
