"""``MaskedAdamW``: torch's AdamW on the kept weights."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from sparsekern.ops.update import masked_adamw_
from sparsekern.ops.update.masked_adamw import check_adamw_numbers
from sparsekern.optim.masked import MaskedOptimizer, Rows, Scalars, rate
from sparsekern.optim.masks import Masks


class MaskedAdamW(MaskedOptimizer):
    """``torch.optim.AdamW`` on the kept weights, in one pass over all parameters.

    Kept weights take torch's steps to rounding, bias correction and decoupled weight decay
    included. Parameters without a mask, the values of compact formats among them, are updated as
    dense ones in the same pass. State: ``step``, ``exp_avg``, ``exp_avg_sq``, interchangeable with
    torch's; float32 for 16-bit weights. What is masked has zero state, so a weight that is grown
    starts without one; ``step`` counts for the whole tensor.

    Args:
        params, lr, betas, eps, weight_decay, maximize: as ``torch.optim.AdamW``.
        amsgrad: must be False.
        decoupled_weight_decay: False puts the decay into the gradient, as ``torch.optim.Adam``.
        capturable: steps are counted where the weights are, nothing of a step waits for the GPU,
            and CUDA graphs can capture it. Same numbers.
        masks, model, masked, clip_norm, master_weights: see :class:`MaskedSGD`.

    Raises:
        TypeError, ValueError: numbers or masks that cannot be used.
        NotImplementedError: ``amsgrad``.

    >>> weight = torch.nn.Parameter(torch.ones(4))
    >>> mask = torch.tensor([True, False, True, False])
    >>> optimizer = MaskedAdamW([weight], lr=0.25, masks={weight: mask}, clip_norm=1)
    >>> weight.grad = torch.tensor([3.0, 100.0, -4.0, 100.0])
    >>> optimizer.step()
    >>> [round(w, 4) for w in weight.tolist()], optimizer.grad_norm.item()
    ([0.7475, 0.0, 1.2475, 0.0], 5.0)
    """

    state_names = ("exp_avg", "exp_avg_sq")

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        decoupled_weight_decay: bool = True,
        masks: Masks | None = None,
        model: nn.Module | None = None,
        masked: str = "zero",
        clip_norm: float | None = None,
        master_weights: bool = False,
        capturable: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "amsgrad": amsgrad,
            "maximize": maximize,
            "decoupled_weight_decay": decoupled_weight_decay,
            "capturable": capturable,
        }
        super().__init__(params, defaults, masks, model, masked, clip_norm, master_weights)

    def _check_options(self, group: dict[str, Any]) -> None:
        if group["amsgrad"]:
            raise NotImplementedError(
                "Expected amsgrad to be False. Got True: MaskedAdamW keeps no largest second "
                "moment; torch.optim.AdamW(amsgrad=True) works with the format masked."
            )
        betas = group["betas"]
        if not isinstance(betas, (tuple, list)) or len(betas) != 2:
            raise TypeError(f"Expected betas to be two numbers. Got {betas!r}.")
        check_adamw_numbers(
            rate(group["lr"]), betas[0], betas[1], group["eps"], group["weight_decay"]
        )

    def _update(self, group: dict[str, Any], rows: Rows, scalars: Scalars) -> None:
        steps = self._steps(group, rows, scalars)
        exp_avgs, exp_avg_sqs = (self._states(rows, name) for name in self.state_names)
        masked_adamw_(
            rows.weights,
            rows.grads,
            exp_avgs,
            exp_avg_sqs,
            steps,
            rows.bits,
            scalars.factor,
            copies=rows.copies,
            found_inf=scalars.found_inf,
            rate=scalars.rate,
            lr=scalars.lr,
            betas=group["betas"],
            eps=group["eps"],
            weight_decay=group["weight_decay"],
            decoupled=group["decoupled_weight_decay"],
            maximize=group["maximize"],
            zero_masked=self.masked == "zero",
        )

    def _steps(self, group: dict[str, Any], rows: Rows, scalars: Scalars) -> list[Tensor]:
        """How many steps each parameter has taken, this one counted unless it overflowed.

        They are with the weights if a graph or a GradScaler needs them there, else on the CPU.
        """
        device, overflow = rows.params[0].device, scalars.found_inf
        known = [state["step"].device for state in rows.states if "step" in state]
        there = group["capturable"] or overflow is not None or device in known
        home = device if there else torch.device("cpu")
        for state in rows.states:
            if "step" not in state:
                state["step"] = torch.zeros((), dtype=torch.float32, device=home)
            elif state["step"].device != home:
                state["step"] = state["step"].to(home, non_blocking=True)
        steps = [state["step"] for state in rows.states]
        if overflow is None:
            torch._foreach_add_(steps, 1)
        else:
            torch._foreach_add_(steps, [(overflow.reshape(()) == 0).to(torch.float32)] * len(steps))
        return steps
