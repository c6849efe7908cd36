"""``DenseGradients``: the gradients of the dense weights, for methods that grow weights by them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from sparsekern.ops import mask as mask_ops
from sparsekern.prune.distributed import average_, is_distributed
from sparsekern.prune.method import Layer, Method


class DenseGradients:
    """Asks for dense gradients where a topology update needs them, and chooses the masks by them.

    Those of all layers together take the memory of a dense model's gradients, which is what sparse
    training wants to save. With ``one_backward`` a layer's mask is chosen in the backward pass, as
    soon as its gradient is there: one of them is alive at a time, masks wait with a bit a weight.

    Args:
        method: which may do without dense gradients.
        choose: the new mask of a layer that has its ``dense_grad``.
        one_backward: a promise that a step has one backward pass.

    Raises:
        ValueError, NotImplementedError: ``one_backward`` with what does not allow it, see
            :func:`can_choose_early`.
    """

    def __init__(
        self, method: Method, choose: Callable[[Layer], Tensor], one_backward: bool
    ) -> None:
        self._method, self._choose, self._early = method, choose, one_backward
        self._bits: dict[str, Tensor] = {}  # masks chosen early, packed
        if one_backward and not can_choose_early(method):
            _refuse(method)

    def arm(self, layers: Sequence[Layer], wanted: bool) -> None:
        """Asks the coming backward passes for dense gradients, or asks no longer."""
        if "dense_grad" not in self._method.needs:
            return
        self._bits.clear()
        for layer in layers:
            if not wanted:
                layer.format.take_dense_grad()
            elif self._early:
                layer.format.arm_dense_grad(partial(self._choose_early, layer))
            else:
                layer.format.arm_dense_grad()

    @torch.no_grad()
    def _choose_early(self, layer: Layer, gradient: Tensor) -> None:
        if layer.name in self._bits:
            raise RuntimeError(
                "Expected one backward pass before pruner.step(), as one_backward=True promises. "
                f"Got a second one through {layer.name}."
            )
        layer.dense_grad = gradient
        try:
            self._bits[layer.name] = mask_ops.pack_bits(self._choose(layer))
        finally:
            layer.dense_grad = None

    def masks(self, layers: Sequence[Layer], scale: float) -> list[Tensor]:
        """Every layer's new mask, bool or packed.

        Args:
            layers: all of them.
            scale: of a GradScaler, which gradients still have; it changes no order.

        Raises:
            RuntimeError: no backward pass came through a layer.
        """
        if self._early:
            masks = [self._there(layer, self._bits.get(layer.name)) for layer in layers]
            self._bits.clear()
            return masks
        if "dense_grad" in self._method.needs:
            gradients = [layer.format.take_dense_grad() for layer in layers]
            for layer, gradient in zip(layers, gradients, strict=True):
                there = self._there(layer, gradient)
                layer.dense_grad = average_(there / scale if scale != 1.0 else there)
        return [self._choose(layer) for layer in layers]

    def _there(self, layer: Layer, value: Tensor | None) -> Tensor:
        if value is None:
            raise RuntimeError(
                f"Expected a backward pass through {layer.name} before pruner.step(), because "
                f"{self._method.name} grows by the dense gradient. Got none."
            )
        return value


def can_choose_early(method: Method) -> bool:
    """Whether masks can be chosen during the backward pass, where every step has one: the method
    looks at dense gradients, its update replaces an optimiser step, and one process trains, since
    the gradients of several are averaged first."""
    replaces = "dense_grad" in method.needs and not method.optimizer_steps_on_update
    return replaces and not is_distributed()


def _refuse(method: Method) -> None:
    if "dense_grad" not in method.needs:
        raise ValueError(
            "Expected one_backward=True with a method that grows by the dense gradient. "
            f"Got {method.name}."
        )
    if method.optimizer_steps_on_update:
        raise NotImplementedError(
            "Expected one_backward=True with a method whose update replaces an optimiser step. "
            f"Got {method.name}, which chooses after one."
        )
    raise ValueError(
        "Expected one_backward=True on one process. Got several, whose gradients are averaged "
        "before masks are chosen."
    )
