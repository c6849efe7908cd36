"""What ``MaskedSGD`` and ``MaskedAdamW`` share: masks, clipping, state and checkpoints."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sparsekern._checks import check_dtype, check_numbers
from sparsekern.ops import mask as mask_ops
from sparsekern.ops import update
from sparsekern.ops.update._checks import (
    COPY_DTYPES,
    SCALAR_DTYPES,
    WEIGHT_DTYPES,
    state_dtype,
)
from sparsekern.optim.compact import KEPT
from sparsekern.optim.masks import Masks, MaskSource
from sparsekern.optim.rows import MASTER, Rows, Scalars

MASKED = ("zero", "unchanged")


class MaskedOptimizer(Optimizer):
    """The base of :class:`MaskedSGD` and :class:`MaskedAdamW`.

    Attributes:
        masked: what becomes of masked weights, "zero" or "unchanged".
        clip_norm: the largest norm of all kept gradients together, or None.
        master_weights: whether 16-bit parameters have float32 masters in the state.
        grad_norm: of the last step, before clipping; one number as a tensor. None without
            ``clip_norm``.
    """

    state_names: ClassVar[tuple[str, ...]]
    # torch.amp.GradScaler sets ``grad_scale`` and ``found_inf`` instead of unscaling by itself.
    _step_supports_amp_scaling = True

    def __init__(
        self,
        params: Any,
        defaults: dict[str, Any],
        masks: Masks | None,
        model: nn.Module | None,
        masked: str,
        clip_norm: float | None,
        master_weights: bool,
    ) -> None:
        if masked not in MASKED:
            raise ValueError(f"Expected masked to be one of {', '.join(MASKED)}. Got {masked!r}.")
        if clip_norm is not None:
            check_numbers(clip_norm=clip_norm)
        self.masked, self.clip_norm, self.master_weights = masked, clip_norm, master_weights
        self.grad_norm: Tensor | None = None
        self._source = MaskSource(model)
        # The mask that a parameter's state was last cleared with, and its version.
        self._cleared: dict[Tensor, tuple[Tensor, int]] = {}
        # The version of a parameter when its master was last the same.
        self._copied: dict[Tensor, int] = {}
        super().__init__(params, defaults)
        if masks is not None:
            self.set_masks(masks)

    # Masks

    def set_masks(self, masks: Masks) -> None:
        """Gives parameters new masks from the next step on; the others keep theirs.

        Weights that stay kept keep their state, grown ones start at zero: what is masked has no
        state. A layer of a sparse model changes its mask with ``layer.set_mask`` instead.

        Args:
            masks: bool of the parameter's shape, True = kept, by parameter; None takes it away.

        Raises:
            TypeError, ValueError: see :class:`MaskSource`; nothing is changed.
        """
        self._source.set(masks, self._held())

    def mask(self, parameter: Tensor) -> Tensor | None:
        """The present mask of a parameter as bool of its shape; None if it has none."""
        bits = self._source.bits().get(parameter)
        return None if bits is None else mask_ops.unpack_bits(bits, tuple(parameter.shape))

    def _held(self) -> Iterator[Tensor]:
        return chain.from_iterable(group["params"] for group in self.param_groups)

    # Stepping

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step. Everything is checked before the first weight changes.

        Args:
            closure: re-evaluates the model and returns the loss.

        Returns:
            The closure's loss, if there is a closure.

        Raises:
            RuntimeError: a sparse or complex gradient.
            TypeError, ValueError: a parameter that is not floating; a state or a mask that is not
                that of the parameter.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        work = self._gather()
        scale = getattr(self, "grad_scale", None)
        undo = None if scale is None else scale.reshape(()).double().reciprocal()
        factor = self._clip([rows for _, rows in work], undo)
        for group, rows in work:
            self._follow_weights(rows)
            self._clear_masked(rows)
            self._update(group, rows, self._scalars(group, rows, factor))
            # NOTE: native code does not count versions; without this, autograd would not see that a
            # weight it has saved is another one now.
            torch.autograd.graph.increment_version(rows.params)
            for parameter, used in zip(rows.params, rows.contiguous, strict=True):
                if used is not parameter:
                    parameter.copy_(used)
                if self.master_weights:
                    self._copied[parameter] = parameter._version
        return loss

    def _scalars(self, group: dict[str, Any], rows: Rows, factor: Tensor | None) -> Scalars:
        """The factor, the scaler's verdict and the rate where the weights are."""
        device, lr = rows.params[0].device, group["lr"]
        found_inf = getattr(self, "found_inf", None)
        if found_inf is not None:
            found_inf = found_inf.to(device, torch.float32, non_blocking=True)
        if factor is not None:
            factor = factor.to(device, non_blocking=True)
        on_device = isinstance(lr, Tensor) and lr.device == device
        if on_device and (group["capturable"] or device.type != "cpu"):
            wide = lr if lr.dtype in SCALAR_DTYPES else lr.double()
            return Scalars(factor, found_inf, wide, 0.0)
        return Scalars(factor, found_inf, None, lr.item() if isinstance(lr, Tensor) else lr)

    def _follow_weights(self, rows: Rows) -> None:
        """Masters of 16-bit parameters: made in their first step; where somebody else has written
        a weight since, the master becomes that weight."""
        for parameter, state in zip(rows.params, rows.states, strict=True):
            if not self.master_weights or parameter.dtype not in COPY_DTYPES:
                state.pop(MASTER, None)  # of a loaded state
                continue
            master = state.get(MASTER)
            if master is None:
                state[MASTER] = parameter.detach().float().contiguous()
            elif self._copied.get(parameter) != parameter._version:
                same = master.to(parameter.dtype) == parameter
                state[MASTER] = torch.where(same, master, parameter.float()).contiguous()
        rows.choose_weights()

    def _gather(self) -> list[tuple[dict[str, Any], Rows]]:
        """What has a gradient, with its mask, one entry for each group and device."""
        masks, work = self._source.bits(), []
        none: dict[torch.device, Tensor] = {}
        capturing = is_capturing()
        for group in self.param_groups:
            self._check_options(group)
            if capturing and not group["capturable"]:
                raise RuntimeError(
                    "Expected capturable to be True while a CUDA graph is captured. Got False."
                )
            devices: dict[torch.device, Rows] = {}
            for parameter in group["params"]:
                grad = parameter.grad
                if grad is None:
                    continue
                state, bits = self.state[parameter], masks.get(parameter) if masks else None
                self._check_parameter(parameter, grad, state, bits)
                device = parameter.device
                if device not in devices:
                    devices[device] = Rows()
                    none[device] = torch.empty(0, dtype=torch.uint8, device=device)
                devices[device].add(parameter, grad, none[device] if bits is None else bits, state)
            work += [(group, rows) for rows in devices.values()]
        return work

    def _check_parameter(
        self, parameter: Tensor, grad: Tensor, state: dict[str, Any], bits: Tensor | None
    ) -> None:
        if grad.layout != torch.strided or grad.is_complex():
            kind = "complex" if grad.is_complex() else "sparse"
            raise RuntimeError(
                f"Expected gradients to be dense and real. Got a {kind} one: "
                f"{type(self).__name__} does not support it."
            )
        check_dtype(parameter, "parameters", WEIGHT_DTYPES)
        for name in (*self.state_names, MASTER):
            value = state.get(name)
            if KEPT in state and name != MASTER:
                continue
            if value is not None and value.shape != parameter.shape:
                raise ValueError(
                    f"Expected {name} to have the shape of its parameter, "
                    f"{tuple(parameter.shape)}. Got {tuple(value.shape)}."
                )
        if bits is not None and bits.numel() != (parameter.numel() + 7) // 8:
            raise ValueError(
                "Expected the mask of a parameter to have its shape. Got one of "
                f"{bits.numel()} bytes for a parameter of shape {tuple(parameter.shape)}, which "
                "has changed since: give it another with set_masks."
            )

    def _clip(self, work: Sequence[Rows], undo: Tensor | None) -> Tensor | None:
        """What gradients are multiplied by: ``undo``, which takes the loss scale out of them, and
        what brings their norm down to ``clip_norm`` then."""
        self.grad_norm = None
        if self.clip_norm is None:
            return undo
        devices: dict[torch.device, Rows] = defaultdict(Rows)
        for rows in work:
            own = devices[rows.params[0].device]
            own.grads += rows.grads
            own.bits += rows.bits
        norms = [
            update.masked_norm(
                each.grads, each.bits, None if undo is None else undo.to(device, non_blocking=True)
            )
            for device, each in devices.items()
        ]
        if len(norms) == 1:
            self.grad_norm = norms[0]
        else:
            home = norms[0].device if norms else torch.device("cpu")
            parts = [norm.to(home, torch.float64) for norm in norms]
            self.grad_norm = torch.stack([torch.zeros((), device=home).double(), *parts]).norm()
        # The same small number as torch.nn.utils.clip_grad_norm_ takes.
        factor = (self.clip_norm / (self.grad_norm + 1e-6)).clamp(max=1.0)
        return factor if undo is None else factor * undo.to(factor.device, non_blocking=True)

    def _update(self, group: dict[str, Any], rows: Rows, scalars: Scalars) -> None:
        """Calls the op on the weights of ``rows``."""
        raise NotImplementedError

    def _states(self, rows: Rows, name: str) -> list[Tensor]:
        """The states of that name, zeros where there are none."""
        states = []
        for parameter, state in zip(rows.params, rows.states, strict=True):
            value = state.get(name)
            dtype = state_dtype(parameter.dtype)
            if value is None:
                value = torch.zeros(parameter.shape, dtype=dtype, device=parameter.device)
            elif value.dtype != dtype or not value.is_contiguous():
                value = value.to(dtype).contiguous()
            state[name] = value
            states.append(value)
        return states

    def _clear_masked(self, rows: Rows) -> None:
        """State of weights that are masked since the last step becomes zero."""
        for parameter, bits, state in zip(rows.params, rows.bits, rows.states, strict=True):
            if bits.numel() == 0:
                continue
            seen = self._cleared.get(parameter)
            if seen and seen[0] is bits and seen[1] == bits._version:
                continue
            for name in self.state_names:
                if state.get(name) is not None:
                    state[name] = state[name].contiguous()
                    mask_ops.apply_(state[name], bits)
            self._cleared[parameter] = (bits, bits._version)

    # Groups, copies and checkpoints

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As torch's; the group's options are checked first."""
        self._check_options({**self.defaults, **param_group})
        super().add_param_group(param_group)

    def _check_options(self, group: dict[str, Any]) -> None:
        """Raises unless the numbers of a group can be used."""
        raise NotImplementedError

    def __getstate__(self) -> dict[str, Any]:
        own = ("masked", "clip_norm", "master_weights", "grad_norm", "_source")
        return {**super().__getstate__(), **{name: getattr(self, name) for name in own}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        options = {**state.get("defaults", self.__dict__.get("defaults", {}))}
        options.pop("differentiable", None)  # which torch adds by itself
        super().__setstate__(state)
        self._cleared, self._copied = {}, {}
        for group in self.param_groups:  # a state of torch's may lack an option
            for name, value in options.items():
                group.setdefault(name, value)

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes the state of this optimiser, or of torch's of the same name without "Masked".

        Masks are not part of it: a model's are in the model's own state, others are given anew.
        State of masked weights is cleared in the next step.

        Raises:
            NotImplementedError, ValueError, TypeError: options that are not supported, as when the
                optimiser is built; nothing is changed.
        """
        for group in state_dict["param_groups"]:
            self._check_options({**self.defaults, **group})
        super().load_state_dict(state_dict)
        # torch gives state the dtype of the weights; that of 16-bit weights is float32 here.
        saved = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
        for key, parameter in zip(saved, list(self._held()), strict=True):
            for name in (*self.state_names, MASTER):
                value = state_dict["state"].get(key, {}).get(name)
                dtype = state_dtype(parameter.dtype)
                if isinstance(value, Tensor) and dtype != parameter.dtype:
                    copy = value.to(parameter.device, dtype, copy=True)
                    self.state[parameter][name] = copy
            kept = state_dict["state"].get(key, {}).get(KEPT)
            if kept is not None:
                self.state[parameter][KEPT] = kept.to(parameter.device, copy=True)


def keeps_zeros(optimizer: Optimizer) -> set[int]:
    """``id`` of the dense masters whose masked weights, which are zero, stay so in every step of
    the optimiser: nobody has to mask them again."""
    if not isinstance(optimizer, MaskedOptimizer):
        return set()
    return {id(parameter) for parameter in optimizer._source.of_model()}


def is_capturing() -> bool:
    """Whether a CUDA graph is recorded instead of work done."""
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


def rate(lr: float | Tensor) -> float:
    """A learning rate as a number, to be checked; 0 for one on a GPU, which is not read here."""
    if not isinstance(lr, Tensor):
        return lr
    if lr.numel() != 1:
        raise ValueError(f"Expected lr to have one element. Got shape {tuple(lr.shape)}.")
    return lr.item() if lr.device.type == "cpu" else 0.0
