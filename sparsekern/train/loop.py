"""The training loop: flat, and it knows no method."""

from __future__ import annotations

import math
import time

import torch
from torch import nn

from sparsekern.data import Dataset, steps_per_epoch
from sparsekern.train.callbacks import Callback
from sparsekern.train.checkpoint import Checkpoints, Progress
from sparsekern.train.loss import cross_entropy
from sparsekern.train.metrics import MetricsLog, Row
from sparsekern.train.network import Network
from sparsekern.train.recipe import Recipe


def train(
    network: Network,
    dataset: Dataset,
    recipe: Recipe,
    *,
    log: MetricsLog,
    checkpoints: Checkpoints,
    callback: Callback | None = None,
) -> Progress:
    """Trains a network to the end, from its newest checkpoint if there is one.

    The learning rate follows the step alone and advances on every step, those that change the
    topology in place of an optimiser step included. A resumed training ends with the same bits as
    one that was never interrupted: weights, masks, optimiser state and metrics.

    Args:
        network: fresh, of this recipe; trained in place.
        dataset: of the recipe.
        recipe: what to do.
        log: gets a row an epoch.
        checkpoints: get one every ``recipe.checkpoint_every`` epochs and one at the end.
        callback: is told of every epoch.

    Returns:
        Where the training stands at the end.

    Raises:
        RuntimeError: the loss is no longer finite.
        ValueError: the checkpoint is damaged or belongs to another training.
    """
    callback = callback or Callback()
    model, optimizer, device = network.model, network.optimizer, network.device
    epoch_steps = steps_per_epoch(len(dataset.train_x), recipe.batch_size)
    total_steps = recipe.epochs * epoch_steps
    last_update = network.updates[-1] if network.updates else None

    progress = checkpoints.restore(network)
    log.drop_after(network.name, network.seed, progress.epoch)
    log.check_epochs(network.name, network.seed, progress.epoch)
    callback.started(network.name, network.seed, recipe.epochs, progress.epoch)

    for epoch in range(progress.epoch, recipe.epochs):
        started = time.perf_counter()
        loss_sum = torch.zeros((), device=device)
        model.train()
        step = epoch * epoch_steps
        for x, y in dataset.train_batches(recipe.batch_size, seed=network.seed, epoch=epoch):
            factor = recipe.learning_rate.factor(step, total_steps, epoch_steps)
            for group in optimizer.param_groups:
                group["lr"] = recipe.optimizer.lr * factor
            x, y = x.to(device), y.to(device)
            if recipe.tune and step == 0:
                network.tune(x)

            with network.autocast():
                loss = cross_entropy(model(x), y)
            network.scaler.scale(loss).backward()
            network.update()
            optimizer.zero_grad()

            loss_sum += loss.detach()
            del loss  # parameters may change their shapes only when no graph is alive
            if recipe.compact and step == last_update and not network.compact():
                callback.said("The dense masters are not made compact: several processes train.")
            if recipe.tune and step == last_update:
                network.tune(x)  # the densities are final
            step += 1

        seconds = progress.seconds + time.perf_counter() - started
        progress = Progress(epoch + 1, step, seconds)
        train_loss = loss_sum.item() / epoch_steps
        if not math.isfinite(train_loss):
            raise RuntimeError(
                f"Expected a finite loss. Got {train_loss} in epoch {epoch + 1} of {network.name}, "
                f"seed {network.seed}: lower optimizer.lr or lengthen the warm-up."
            )
        with network.autocast():
            test_loss, test_accuracy = evaluate(model, dataset)
        row = Row(
            network=network.name,
            seed=network.seed,
            epoch=epoch + 1,
            step=step,
            learning_rate=optimizer.param_groups[0]["lr"],
            train_loss=train_loss,
            test_loss=test_loss,
            test_accuracy=test_accuracy,
            density=network.density,
        )
        log.append(row)
        if (epoch + 1) % recipe.checkpoint_every == 0 or epoch + 1 == recipe.epochs:
            log.sync()
            checkpoints.save(network, progress)
        callback.epoch_ended(row)

    callback.ended(network.name, network.seed)
    return progress


@torch.no_grad()
def evaluate(model: nn.Module, dataset: Dataset, batch_size: int = 256) -> tuple[float, float]:
    """Mean cross entropy and accuracy, a fraction in [0, 1], over all targets of the test set."""
    model.eval()
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    loss, correct = 0.0, 0
    for x, y in dataset.test_batches(batch_size):
        x, y = x.to(device), y.to(device)
        logits = model(x)
        loss += cross_entropy(logits, y, reduction="sum").item()
        correct += int((logits.argmax(-1) == y).sum())
    targets = dataset.test_y.numel()
    return loss / targets, correct / targets
