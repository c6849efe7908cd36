"""``MaskedSGD``: torch's SGD on the kept weights."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from sparsekern.ops.update import masked_sgd_
from sparsekern.ops.update.masked_sgd import check_sgd_numbers
from sparsekern.optim.masked import MaskedOptimizer, is_capturing, rate
from sparsekern.optim.masks import Masks
from sparsekern.optim.rows import Rows, Scalars


class MaskedSGD(MaskedOptimizer):
    """``torch.optim.SGD`` on the kept weights, in one pass over all parameters.

    Kept weights take torch's steps to rounding; weight decay, momentum and Nesterov included.
    Parameters without a mask, the values of compact formats among them, are updated as dense ones
    in the same pass. State: ``momentum_buffer``, interchangeable with torch's; float32 for 16-bit
    weights. What is masked has zero state, so a weight that is grown starts without one.

    Args:
        params, lr, momentum, dampening, weight_decay, nesterov, maximize: as ``torch.optim.SGD``.
        masks: bool tensors of the parameters' shapes, True = kept, by parameter.
        model: whose dense masters (format ``masked``) have their masks in their layers, looked up
            for each step; may become sparse later, as by a Pruner.
        masked: "zero": masked weights become exactly zero; "unchanged": they keep their bits.
        clip_norm: gradients are scaled so that the norm of all kept ones together is at most this,
            as ``torch.nn.utils.clip_grad_norm_`` does; ``grad_norm`` is the norm found.
        master_weights: bfloat16 and float16 parameters have a float32 ``master`` in the state,
            which is updated and rounded to the parameter in the same pass. A weight that somebody
            else writes (not through ``.data``) is taken over by its master.
        capturable: nothing of a step waits for the GPU, and CUDA graphs can capture it; with
            dampening, only after a first step.

    Raises:
        TypeError, ValueError: numbers or masks that cannot be used.

    Under a GradScaler, the step unscales gradients in its one pass, clips the unscaled norm, and
    does nothing after an overflow; it does not write gradients. ``lr`` may be a tensor: where it is
    on the weights' GPU (or ``capturable``), the kernels read it, in every replay anew. Masks take
    effect in the first step in which their weight has a gradient. Weights, gradients and states
    that are not contiguous are copied there and back. A step costs about 7 us of Python for each
    tensor besides the pass over memory.

    >>> weight = torch.nn.Parameter(torch.ones(2, 3))
    >>> mask = torch.tensor([[True, False, True], [False, True, False]])
    >>> optimizer = MaskedSGD([weight], lr=0.5, masks={weight: mask})
    >>> weight.grad = torch.ones(2, 3)
    >>> optimizer.step()
    >>> weight.tolist()
    [[0.5, 0.0, 0.5], [0.0, 0.5, 0.0]]
    """

    state_names = ("momentum_buffer",)

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        masks: Masks | None = None,
        model: nn.Module | None = None,
        masked: str = "zero",
        clip_norm: float | None = None,
        master_weights: bool = False,
        capturable: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "maximize": maximize,
            "capturable": capturable,
        }
        super().__init__(params, defaults, masks, model, masked, clip_norm, master_weights)

    def _check_options(self, group: dict[str, Any]) -> None:
        check_sgd_numbers(
            rate(group["lr"]),
            group["momentum"],
            group["dampening"],
            group["weight_decay"],
            group["nesterov"],
        )

    def _update(self, group: dict[str, Any], rows: Rows, scalars: Scalars) -> None:
        starts: list[bool] = []
        buffers: list[Tensor] = []
        if group["momentum"] != 0:
            starts = self._starts(group, rows)
            # NOTE: the one step that waits for the device: after an overflow these buffers must
            # still have no gradient.
            if any(starts) and scalars.found_inf is not None and scalars.found_inf.item() != 0:
                return
            buffers = self._states(rows, "momentum_buffer")
        masked_sgd_(
            rows.weights,
            rows.grads,
            buffers,
            starts,
            rows.bits,
            scalars.factor,
            copies=rows.copies,
            found_inf=scalars.found_inf,
            rate=scalars.rate,
            lr=scalars.lr,
            momentum=group["momentum"],
            dampening=group["dampening"],
            weight_decay=group["weight_decay"],
            nesterov=group["nesterov"],
            maximize=group["maximize"],
            zero_masked=self.masked == "zero",
        )

    def _starts(self, group: dict[str, Any], rows: Rows) -> list[bool]:
        """Which buffers have no gradient yet. Without dampening, buffers of zeros are as good: a
        first step that overflows is skipped, and one that is captured is replayed."""
        if group["dampening"] == 0:
            return [False] * len(rows.states)
        starts = [state.get("momentum_buffer") is None for state in rows.states]
        if any(starts) and is_capturing():
            raise RuntimeError(
                "Expected a first step with dampening before a CUDA graph is captured. Got none."
            )
        return starts
