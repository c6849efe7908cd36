"""RigL."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from sparsekern._checks import check_fraction
from sparsekern.prune.method import METHODS, Clock, Layer, Method
from sparsekern.prune.schedule import Periodic, cosine_drop_fraction


@dataclass(frozen=True, kw_only=True)
class RigL(Method):
    """Drop the smallest weights, grow where the dense gradient is largest.

    Every ``update_every`` steps, per layer with ``n`` kept weights and
    ``f = drop_fraction / 2 (1 + cos(pi t / (end T)))``: ``n_drop = int(f n)`` weights of smallest
    ``|w|`` are dropped, and as many positions of largest ``|dL/dW|`` are grown among all that are
    not kept, just-dropped ones included. A grown weight starts at zero with zero optimiser state;
    one that is dropped and grown in the same update keeps its value and state. The update replaces
    the optimiser step of its iteration.

    Args:
        density, distribution, pattern: see :class:`Method`.
        update_every: steps between two updates.
        drop_fraction: share of a layer's weights dropped at the first update, in [0, 1].
        end: fraction of the run after which the topology is fixed.

    Reference: Evci et al., Rigging the Lottery: Making All Tickets Winners, 2020, section 3.
    Differences from the authors' code: ties go to the first position instead of being broken by
    noise of 1e-5 (which lets an active weight below it lose to an inactive one); there is no update
    at step 0; the step counter advances on updates, so schedules count them (theirs stand still);
    the cosine is zero from ``end`` on.

    With ``pattern=FanIn()`` this is SRigL (Lasby et al., Dynamic Sparse Training with Structured
    Sparsity, 2024, section 3) without the ablation of neurons: an output that loses all its weights
    grows as many others.
    """

    name: ClassVar[str] = "rigl"
    needs: ClassVar[frozenset[str]] = frozenset({"dense_grad"})
    optimizer_steps_on_update: ClassVar[bool] = False

    update_every: int = 100
    drop_fraction: float = 0.3
    end: float = 0.75

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fraction(self.drop_fraction, "drop_fraction")
        self._schedule()

    def _schedule(self) -> Periodic:
        return Periodic(self.update_every, end=self.end)

    def is_update(self, clock: Clock) -> bool:
        return self._schedule().happens(*clock)

    def counts(self, layer: Layer, clock: Clock) -> tuple[int, int]:
        fraction = cosine_drop_fraction(
            clock.step, self.end * clock.total_steps, self.drop_fraction
        )
        dropped = int(layer.nnz * fraction)
        return layer.nnz - dropped, dropped

    def grow_scores(self, layer: Layer) -> Tensor:
        assert layer.dense_grad is not None
        return layer.dense_grad.abs_()  # in place: it is dropped after the update


METHODS.add(RigL.name, RigL)
