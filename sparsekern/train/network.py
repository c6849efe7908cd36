"""``Network``: one of the networks that a run trains side by side."""

from __future__ import annotations

import dataclasses
import math
import zlib
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sparsekern.data import Dataset, steps_per_epoch
from sparsekern.formats import Plan
from sparsekern.nn import sparse_layers, tune
from sparsekern.ops import bsr, csr
from sparsekern.optim import state_bytes
from sparsekern.prune import Clock, Pruner
from sparsekern.prune.dense_grad import can_choose_early
from sparsekern.prune.distributed import is_distributed
from sparsekern.prune.sparsify import find_targets
from sparsekern.train.device import autocast, find_device, gradient_scaler
from sparsekern.train.recipe import Recipe

NETWORKS = ("dense", "sparse", "small_dense")


@dataclass(frozen=True)
class Bytes:
    """Bytes of the prunable layers: weights, all indices and layouts, optimiser state."""

    weight: int
    index: int
    state: int

    @property
    def total(self) -> int:
        return self.weight + self.index + self.state


@dataclass
class Network:
    """A model with what trains it.

    Attributes:
        name: "dense", "sparse" or "small_dense".
        seed: of its weights, masks and batches.
        width: factor on the hidden sizes of the recipe's model.
        model, optimizer: plain torch.
        pruner: of the sparse network, else None.
        weights: the weights of the prunable layers; the same layers in every network.
        updates: the steps at which the topology changes.
        precision: of the forward pass, see :func:`~sparsekern.train.device.autocast`.
        scaler: of float16's gradients.
        compacted: whether the dense masters have become compact.
        plan: the kernels that were measured and chosen, if any were.
    """

    name: str
    seed: int
    width: float
    model: nn.Module
    optimizer: torch.optim.Optimizer
    pruner: Pruner | None
    weights: list[nn.Parameter]
    updates: list[int]
    precision: str
    scaler: torch.amp.GradScaler
    compacted: bool = False
    plan: Plan | None = None

    @property
    def device(self) -> torch.device:
        """Where it is trained."""
        return self.weights[0].device

    def autocast(self) -> AbstractContextManager[object]:
        """What the forward pass runs under."""
        return autocast(self.device, self.precision)

    def update(self) -> None:
        """The optimiser step, or what the method puts in its place."""
        if self.pruner is None:
            self.scaler.step(self.optimizer)
        else:
            self.pruner.step(scaler=self.scaler)
        self.scaler.update()

    @property
    def density(self) -> float:
        """Fraction of kept weights over the prunable layers."""
        return 1.0 if self.pruner is None else self.pruner.density

    @property
    def nbytes(self) -> Bytes:
        """What the prunable layers hold now."""
        return Bytes(
            weight=sum(weight.nbytes for weight in self.weights),
            index=0 if self.pruner is None else self.pruner.nbytes()[0].index,
            state=sum(state_bytes(self.optimizer, weight) for weight in self.weights),
        )

    def tune(self, x: Tensor) -> None:
        """Measures the kernels of the sparse layers on a batch and chooses, unless the choice
        there is was measured at the present densities."""
        formats = [layer.format for layer in sparse_layers(self.model).values()]
        if any(f.measured is None or not f.measured.holds_at(f.density) for f in formats):
            self.model.train()
            with self.autocast():
                self.plan = tune(self.model, x)

    def compact(self) -> bool:
        """Makes dense masters compact, if there are any. Returns whether it could.

        No graph of an earlier step may be alive, because parameters change their shapes.
        """
        if self.pruner is None or is_distributed():
            return False
        self.pruner.compact()
        self.compacted = True
        return True

    def compact_like(self, state: dict[str, Tensor]) -> None:
        """Compacts a fresh network whose checkpoint was taken after :meth:`compact`.

        What becomes compact follows from the masks, so the checkpoint's masks come first.
        """
        for name, layer in sparse_layers(self.model).items():
            prefix = f"{name}.format."
            if prefix + "col" in state and layer.format.name == "masked":
                layer.format.set_mask(_compact_mask(state, prefix, tuple(layer.format.shape)))
        self.compact()


def _compact_mask(state: dict[str, Tensor], prefix: str, shape: tuple[int, ...]) -> Tensor:
    """The mask of a compact weight of that shape in a model's state."""
    col, block = state[prefix + "col"], state.get(prefix + "block")
    columns = math.prod(shape[1:])
    if col.ndim == 2:  # rows of one length, condensed
        mask = torch.zeros(shape[0], columns, dtype=torch.bool)
        return mask.scatter_(1, col.long(), True).view(shape)
    crow = state[prefix + "crow"]
    if block is None:
        return csr.to_dense(torch.ones(col.shape, dtype=torch.bool), crow, col, columns).view(shape)
    height, width = block.tolist()
    ones = torch.ones(len(col), height, width, dtype=torch.bool)
    return bsr.from_matrix(bsr.to_dense(ones, crow, col, columns // width), shape)


def build_network(
    recipe: Recipe, dataset: Dataset, name: str, seed: int, width: float = 1.0
) -> Network:
    """A network before its first step; the same arguments give the same bits.

    The networks of one seed start from the same dense weights (at equal width).

    Args:
        recipe: of the run.
        dataset: of the recipe.
        name: one of :data:`NETWORKS`.
        seed: of weights and masks.
        width: factor on the hidden sizes.
    """
    torch.manual_seed(seed)
    config = dataclasses.replace(recipe.model, width=recipe.model.width * width)
    model = config.build(
        dataset.input_shape,
        dataset.classes,
        vocabulary=dataset.vocabulary,
        per_token=dataset.per_token,
    )
    device = find_device(recipe.device)
    model.to(device)
    optimizer = recipe.optimizer.build(model)
    targets, _ = find_targets(model, recipe.exclude)
    weights = [target.weight for target in targets]
    precision, scaler = recipe.precision, gradient_scaler(device, recipe.precision)
    if name != "sparse":
        return Network(name, seed, width, model, optimizer, None, weights, [], precision, scaler)
    total_steps = recipe.epochs * steps_per_epoch(len(dataset.train_x), recipe.batch_size)
    pruner = Pruner(
        model,
        optimizer,
        recipe.method,
        total_steps=total_steps,
        exclude=recipe.exclude,
        format=recipe.format,
        # NOTE: with the seed of the weights, random masks would be drawn from the very numbers
        # that the weights were, and keep the largest ones.
        seed=zlib.crc32(f"pruner {seed}".encode()),
        one_backward=can_choose_early(recipe.method),
    )
    updates = [
        step for step in range(total_steps) if recipe.method.is_update(Clock(step, total_steps))
    ]
    return Network(name, seed, width, model, optimizer, pruner, weights, updates, precision, scaler)
