"""``Pruner``: the one loop that runs every method."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import OptState
from torch.optim import Optimizer

from sparsekern._checks import check_seed, check_texts
from sparsekern.formats import (
    FormatBytes,
    MaskedFormat,
    SparseFormat,
    choose_format,
)
from sparsekern.nn.convert import sparse_layers
from sparsekern.nn.layer import SparseLayer, build_stored
from sparsekern.optim import MaskedAdamW
from sparsekern.optim.masked import keeps_zeros
from sparsekern.optim.matrix import check_compact, check_conversion
from sparsekern.optim.state import (
    check_holds,
    move_state,
    reset_state,
    restart_history,
    state_bytes,
)
from sparsekern.prune.adopt import adopt, check_arguments
from sparsekern.prune.dense_grad import DenseGradients
from sparsekern.prune.distributed import (
    agree_on_topology,
    any_rank,
    from_rank_zero,
    is_distributed,
)
from sparsekern.prune.method import Clock, Layer, Method
from sparsekern.prune.saved import check_state
from sparsekern.prune.scores import SCORES
from sparsekern.prune.select import divided, layer_counts, select, stored_shapes
from sparsekern.prune.sparsify import (
    LayerReport,
    SparsifyReport,
    Target,
    convert,
    find_targets,
    note_reasons,
)


class Pruner:
    """Trains a model sparsely: call :meth:`step` in place of ``optimizer.step()``.

    A dense model is made sparse in place when the Pruner is built (Parameter objects stay, so an
    optimiser built before is fine). A model that is sparse already keeps its topology as the start:
    ``method.density`` and ``format`` must then be its own, or within reach of a method that prunes.

    Args:
        model: dense or sparse; not yet wrapped in DistributedDataParallel if it is dense.
        optimizer: any element-wise torch optimiser over the model's parameters; those that need
            matrices (Muon, ...) work with dense masters (``format="masked"``), which
            ``sk.optim.MaskedAdamW(..., model=model)`` and ``MaskedSGD`` update fastest.
        method: what decides the topology.
        total_steps: optimiser steps of the whole run, which fractions in ``method`` refer to.
        exclude: names of layers to leave as they are, as ``fnmatch`` patterns.
        format: "auto" or a format's name for all layers.
        seed: of random masks and random growth.
        one_backward: a promise that every step has one backward pass; a method that grows by the
            dense gradient then chooses each layer's mask during it, and one dense gradient is alive
            at a time; a GradScaler's scale is still in it, which changes no order.

    Raises:
        TypeError, ValueError: an argument is not what it should be, names nothing, or does not fit
            the model; the model is as it was then.

    Attributes:
        report: what became of each layer.
        steps: optimiser steps so far.

    >>> from sparsekern.prune import RigL
    >>> model = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.Linear(32, 4))
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> pruner = Pruner(model, optimizer, RigL(density=0.25), total_steps=1000)
    >>> model(torch.zeros(2, 16)).sum().backward()
    >>> pruner.step()
    >>> pruner.density
    0.25
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        method: Method,
        *,
        total_steps: int,
        exclude: Sequence[str] = (),
        format: str = "auto",
        seed: int = 0,
        one_backward: bool = False,
    ) -> None:
        exclude = check_texts(exclude, "exclude")
        check_arguments(model, optimizer, method, total_steps, format)
        check_seed(seed, "seed")
        self._gradients = DenseGradients(method, self._new_mask, one_backward)
        self.model, self.optimizer, self.method = model, optimizer, method
        self.total_steps = total_steps
        self.steps = 0
        self.generator = torch.Generator().manual_seed(seed)
        self._due = False  # an update that had to wait for finite gradients
        self.report = SparsifyReport()
        agree_on_topology(model)
        self.layers = self._adopt_sparse(exclude, format) or self._convert_dense(exclude, format)
        agree_on_topology(model)  # the indices that are new
        self._arm()

    # Building

    def _adopt_sparse(self, exclude: Sequence[str], format: str) -> list[Layer]:
        """The layers of a model that is sparse already."""
        self.report, found = adopt(self.model, self.method, exclude, format)
        check_holds(self.optimizer, {name: stored.parameter for name, stored, _ in found})
        check_compact(
            self.optimizer, {n: f.parameter for n, f, _ in found if f.master == "compact"}
        )
        return [self._layer(*each) for each in found]

    def _convert_dense(self, exclude: Sequence[str], format: str) -> list[Layer]:
        """Makes a dense model sparse as the method starts."""
        targets, left_dense = find_targets(self.model, exclude)
        targets, not_divided = divided(self.model, targets, self.method.pattern)
        left_dense += not_divided
        if not targets:
            raise ValueError("Expected a model with Linear or Conv2d layers to prune. Got none.")
        check_holds(self.optimizer, {target.names[0]: target.weight for target in targets})
        method = self.method
        shapes = stored_shapes(self.model, targets)
        final = layer_counts(shapes, method.density, method.distribution, method.pattern)
        sizes = [target.weight.numel() for target in targets]
        start = [method.initial_nnz(*each) for each in zip(final, sizes, strict=True)]
        weights = {t.names[0]: (t.weight, n) for t, n in zip(targets, start, strict=True)}
        check_conversion(self.optimizer, weights, format, method.master, method.pattern)

        def initial_mask(i: int, target: Target) -> Tensor:
            weight = target.weight.detach()
            scores = SCORES[method.initial_score](weight, self.generator)
            return from_rank_zero(select(self.model, target, scores, start[i], method.pattern))

        parameters = [target.weight for target in targets]
        kept_sparse = self.report.left_dense
        self.report, formats = convert(
            self.model,
            targets,
            initial_mask,
            format=format,
            master=method.master,
            pattern=method.pattern,
        )
        self.report.left_dense = kept_sparse + left_dense
        note_reasons(self.model, self.report)
        for parameter in parameters:
            reset_state(self.optimizer, parameter)
        counts = {target.names[0]: count for target, count in zip(targets, final, strict=True)}
        return [
            self._layer(target.names[0], stored, counts[target.names[0]])
            for target, stored in formats
        ]

    def _layer(self, name: str, format: SparseFormat, final_nnz: int) -> Layer:
        return Layer(name, format, final_nnz, self.generator)

    # Stepping

    @property
    def clock(self) -> Clock:
        return Clock(self.steps, self.total_steps)

    def step(
        self, closure: Callable[[], Any] | None = None, scaler: torch.amp.GradScaler | None = None
    ) -> Any:
        """One optimiser step, or the topology update that replaces it.

        Args:
            closure: re-evaluates the model and returns the loss, for optimisers that want one.
            scaler: of mixed precision; unless the caller has unscaled gradients (to clip them), the
                scaler or the optimiser does so; ``scaler.update()`` stays the caller's. After
                an overflow nothing happens and a due update waits.

        Returns:
            The closure's loss, if there is a closure.
        """
        if closure is not None and scaler is not None:
            raise ValueError(
                "Expected closure or scaler, not both. Got both: torch's GradScaler "
                "takes no closure."
            )
        updating = self._due or self.method.is_update(self.clock)
        steps_too = self.method.optimizer_steps_on_update
        loss = None
        # NOTE: looking at the gradients makes the host wait for the device; other steps leave it to
        # the scaler, which waits only for optimisers that do not unscale by themselves.
        finite = self._unscale(scaler) if updating else True
        if updating and not steps_too and closure is not None:
            with torch.enable_grad():
                loss = closure()
        if not updating or steps_too:
            loss = self._optimizer_step(closure, scaler)
        if updating and finite:
            self.update_topology(scaler)
        self._due = updating and not finite
        self.steps += 1
        self._arm()
        return loss

    def _unscale(self, scaler: torch.amp.GradScaler | None) -> bool:
        """Whether the gradients are finite on every rank; unscales them for optimisers that do not
        do so themselves."""
        if scaler is None or not scaler.is_enabled():
            return True
        if scaler._per_optimizer_states[id(self.optimizer)]["stage"] is OptState.READY:
            if getattr(self.optimizer, "_step_supports_amp_scaling", False):
                scaler._check_inf_per_device(self.optimizer)  # it unscales in its own pass
            else:
                scaler.unscale_(self.optimizer)
        found = scaler._found_inf_per_device(self.optimizer)
        overflow = any(bool(value.item()) for value in found.values())
        return not any_rank(overflow, next(self.model.parameters()).device)

    def _optimizer_step(
        self, closure: Callable[[], Any] | None, scaler: torch.amp.GradScaler | None
    ) -> Any:
        if scaler is not None:
            loss = scaler.step(self.optimizer)
        elif closure is not None:
            loss = self.optimizer.step(closure)
        else:
            loss = self.optimizer.step()
        kept = keeps_zeros(self.optimizer)
        for layer in self.layers:
            if isinstance(layer.format, MaskedFormat) and id(layer.format.weight) not in kept:
                layer.format.remask_()
        return loss

    @torch.no_grad()
    def update_topology(self, scaler: torch.amp.GradScaler | None = None) -> None:
        """Gives every layer the method's new mask; values and optimiser state follow.

        All masks are known before the first layer changes: an error leaves every layer as it was.
        """
        scale = scaler.get_scale() if scaler is not None and scaler.is_enabled() else 1.0
        try:
            masks = self._gradients.masks(self.layers, scale)
        except BaseException:
            self._arm()
            raise
        finally:
            for layer in self.layers:
                layer.dense_grad = None
        for layer, mask in zip(self.layers, masks, strict=True):
            change = layer.format.set_mask(mask)
            move_state(self.optimizer, layer.format.parameter, change)

    def _new_mask(self, layer: Layer) -> Tensor:
        mask = from_rank_zero(self.method.update(layer, self.clock))
        layer.dense_grad = None  # the largest thing here: not for longer than needed
        return mask

    def _arm(self) -> None:
        """Asks for the dense gradient where the coming step needs it, and only there."""
        self._gradients.arm(self.layers, self._due or self.method.is_update(self.clock))

    # Ending compact

    @torch.no_grad()
    def compact(self) -> list[LayerReport]:
        """Turns dense masters into compact rows or blocks where they pay, for a final phase of
        fixed masks.

        Parameter objects stay, their gradients are cleared and their optimiser state moves along.
        Layers that the rule of :func:`sparsekern.formats.choose_format` keeps dense are left.

        Returns:
            What changed.

        Raises:
            RuntimeError: when several ranks train together (DistributedDataParallel holds the
                dense gradients' shapes).
            NotImplementedError: the optimiser needs matrices.
        """
        if is_distributed():
            raise RuntimeError(
                "Expected compact() on one process. Got several: "
                "DistributedDataParallel cannot change the shape of a gradient."
            )
        formats = {layer.name: layer.format for layer in self.layers}
        masters = {n: f.weight for n, f in formats.items() if isinstance(f, MaskedFormat)}
        check_compact(self.optimizer, masters)
        changed = []
        for name, module in sparse_layers(self.model).items():
            stored = module.format
            # NOTE: the rule decides, not what runs now: that may have been measured, and timing
            # decides no shape.
            pattern = self.method.pattern
            kind = choose_format(stored.density, stored.parameter.device, pattern=pattern)
            if not isinstance(stored, MaskedFormat) or kind == "masked":
                continue
            compact = self._compact_one(stored, kind)
            for other in self.model.modules():
                if isinstance(other, SparseLayer) and other.format is stored:
                    other.format = compact
            for layer in self.layers:
                if layer.format is stored:
                    layer.format = compact
            changed.append(
                LayerReport([name], compact.shape, compact.name, compact.nnz, compact.numel)
            )
        return changed

    def _compact_one(self, stored: MaskedFormat, kind: str) -> SparseFormat:
        parameter, mask, pattern = stored.weight, stored.mask(), self.method.pattern
        if isinstance(self.optimizer, MaskedAdamW):
            self.optimizer.expand_state(parameter)
        compact = build_stored(parameter.detach(), mask, kind, pattern)
        state = self.optimizer.state.get(parameter, {})
        moved = {
            key: build_stored(value, mask, kind, pattern).parameter.data
            for key, value in state.items()
            if isinstance(value, Tensor) and value.shape == parameter.shape
        }
        compact.adopt(parameter)
        if not restart_history(self.optimizer):
            state.update(moved)
        return compact

    # Accounts and checkpoints

    @property
    def density(self) -> float:
        """Fraction of kept weights over the prunable layers, those at density 1 included."""
        rows = self.report.layers
        dense = [row for row in rows if row.format == "dense"]
        nnz = sum(layer.nnz for layer in self.layers) + sum(row.nnz for row in dense)
        return nnz / (sum(layer.numel for layer in self.layers) + sum(row.numel for row in dense))

    def nbytes(self) -> tuple[FormatBytes, int]:
        """Bytes of the sparse layers (weights, indices), and of their optimiser state."""
        parts = [layer.format.nbytes for layer in self.layers]
        state = sum(state_bytes(self.optimizer, layer.format.parameter) for layer in self.layers)
        return FormatBytes(sum(p.weight for p in parts), sum(p.index for p in parts)), state

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs besides the model's and the optimiser's own state."""
        return {
            "method": self.method.name,
            "steps": self.steps,
            "total_steps": self.total_steps,
            "due": self._due,
            "generator": self.generator.get_state(),
            "memory": {layer.name: layer.memory for layer in self.layers},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues where :meth:`state_dict` was taken. Load the model's state first.

        Raises:
            TypeError, ValueError: not the whole state of a Pruner, or one of another method, of a
                run of another length or of other layers; nothing is changed then.
        """
        own = {"method": self.method.name, "total_steps": self.total_steps}
        check_state(state, own, [layer.name for layer in self.layers])
        self.steps = state["steps"]
        self._due = state["due"]
        self.generator.set_state(state["generator"])
        for layer in self.layers:
            layer.memory = state["memory"][layer.name]
        self._arm()
