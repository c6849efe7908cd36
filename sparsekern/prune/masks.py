"""Masks that come with a model: its zeros, those of ``torch.nn.utils.prune``, or a dict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from sparsekern._checks import check_dtype, check_shape, check_tensor
from sparsekern.nn.convert import why_not_convertible
from sparsekern.prune.report import LayerReport, Target, first_match

TAKEN = "mask of torch.nn.utils.prune"


@dataclass
class Given:
    """Which layers are converted with which mask, and which stay dense."""

    targets: list[Target]
    masks: list[Tensor]
    dense: list[LayerReport] = field(default_factory=list)
    pruned: dict[str, nn.Module] = field(
        default_factory=dict
    )  # layers that torch.nn.utils.prune computes the weight of

    def mask(self, i: int, target: Target) -> Tensor:
        """The mask of one target, whose weight becomes an ordinary Parameter again."""
        module = self.pruned.get(target.names[0])
        if module is not None:
            for name in ("weight", "bias"):
                if f"{name}_orig" in module._parameters:
                    prune.remove(module, name)
        return self.masks[i]

    def note(self, rows: Sequence[LayerReport]) -> None:
        """Says in the report whose masks were taken."""
        for row in rows:
            if row.names[0] in self.pruned:
                row.reason = f"{row.reason}, {TAKEN}" if row.reason else TAKEN


def given_masks(
    model: nn.Module,
    mask: str | Mapping[str, Tensor],
    targets: list[Target],
    dense: list[LayerReport],
    exclude: Sequence[str],
) -> Given:
    """The masks of a model that brings its own; nothing is changed yet.

    Args:
        model: to be converted.
        mask: "nonzero", or bool tensors by the names of layers or of their weights.
        targets, dense: what :func:`find_targets` found.
        exclude: names of layers to leave alone.

    Raises:
        TypeError, ValueError: a mask for no layer or for one that cannot be sparse, of another
            shape or dtype, or two different ones for one weight.
    """
    pruned, dense = _pruned_targets(model, dense, exclude)
    order = {name: i for i, (name, _) in enumerate(model.named_modules(remove_duplicate=False))}
    targets = sorted([*targets, *pruned.values()], key=lambda target: order[target.names[0]])
    modules = {name: model.get_submodule(name) for name in pruned}
    if isinstance(mask, Mapping):
        masks = _by_name(mask, targets, dense)
        left = [target for target in targets if target.names[0] not in masks]
        dense = dense + [
            LayerReport(t.names, t.shape, "dense", n, n, "no mask given")
            for t in left
            for n in [t.weight.numel()]
        ]
        targets = [target for target in targets if target.names[0] in masks]
        return Given(targets, [masks[t.names[0]] for t in targets], dense, modules)
    found = []
    for target in targets:
        module = modules.get(target.names[0])
        weight = target.weight.detach() if module is None else module._buffers["weight_mask"]
        assert isinstance(weight, Tensor)
        found.append(weight != 0)
    return Given(targets, found, dense, modules)


def _pruned_targets(
    model: nn.Module, dense: list[LayerReport], exclude: Sequence[str]
) -> tuple[dict[str, Target], list[LayerReport]]:
    """The layers under ``torch.nn.utils.prune`` by name, and the others that stay dense."""
    users: dict[int, list[str]] = {}
    for key, parameter in model.named_parameters(remove_duplicate=False):
        users.setdefault(id(parameter), []).append(key.rpartition(".")[0])
    pruned: dict[str, Target] = {}
    others = []
    for row in dense:
        name = row.names[0]
        module = model.get_submodule(name)
        weight = module._parameters.get("weight_orig")
        pattern = first_match(row.names, exclude)
        if (
            weight is None
            or "weight_mask" not in module._buffers
            or not prune.is_pruned(module)
            or row.reason != why_not_convertible(module)
        ):
            others.append(row)
        elif pattern is not None:
            row.reason = f"excluded by {pattern!r}"
            others.append(row)
        elif len(users[id(weight)]) > 1:
            other = next(user for user in users[id(weight)] if user != name)
            row.reason = f"its weight is shared with {other}, which has another mask or none"
            others.append(row)
        else:
            pruned[name] = Target([name], weight)
    return pruned, others


def _by_name(
    mask: Mapping[str, Tensor], targets: list[Target], dense: list[LayerReport]
) -> dict[str, Tensor]:
    """The masks of a dict by the first name of each target."""
    first = {name: target for target in targets for name in target.names}
    reasons = {name: row.reason for row in dense for name in row.names}
    masks: dict[str, Tensor] = {}
    for key, value in mask.items():
        name = key if key in first else str(key).removesuffix(".weight")
        if name not in first:
            why = f", {reasons[name]}" if name in reasons else ""
            raise ValueError(f"Expected mask to name layers that can be sparse. Got {key!r}{why}.")
        check_tensor(value, f"mask of {key}")
        check_dtype(value, f"mask of {key}", (torch.bool,))
        check_shape(value, f"mask of {key}", first[name].shape)
        value = value.to(first[name].weight.device)
        other = masks.setdefault(first[name].names[0], value)
        if not bool((other == value).all()):
            raise ValueError(
                f"Expected one mask for {', '.join(first[name].names)}, which share a weight. "
                "Got different ones."
            )
    return masks
