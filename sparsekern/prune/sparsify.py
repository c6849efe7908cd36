"""``sk.sparsify``: a dense model becomes a sparse one, in place."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sparsekern._checks import check_fraction, check_model, check_texts
from sparsekern.formats import FORMATS, Plan, SparseFormat
from sparsekern.nn.convert import (
    build_format,
    dense_layers,
    install_all,
    note_left_dense,
    why_not_convertible,
)
from sparsekern.nn.layer import SparseLayer
from sparsekern.nn.tune import tune
from sparsekern.ops import mask as mask_ops
from sparsekern.patterns import UNSTRUCTURED, Pattern, Unstructured
from sparsekern.prune.distribution import kept_counts
from sparsekern.prune.scores import SCORES


@dataclass
class LayerReport:
    """What became of one layer (or of several that share a weight)."""

    names: list[str]
    shape: tuple[int, ...]
    format: str  # "dense" for a layer that stayed a plain module
    nnz: int
    numel: int
    reason: str = ""

    @property
    def density(self) -> float:
        return self.nnz / self.numel if self.numel else 1.0


@dataclass
class SparsifyReport:
    """What ``sparsify`` did, layer by layer. ``density`` counts the weights of the prunable layers
    (also those that came out at density 1), not biases, norms, embeddings or excluded layers.
    ``left_dense`` has the layers that stay as they are (excluded ones of a model that is sparse
    already keep their format), each with the reason."""

    layers: list[LayerReport] = field(default_factory=list)
    left_dense: list[LayerReport] = field(default_factory=list)
    plan: Plan | None = None  # what was measured, if there was an example

    @property
    def density(self) -> float:
        numel = sum(layer.numel for layer in self.layers)
        return sum(layer.nnz for layer in self.layers) / numel if numel else 1.0

    def __str__(self) -> str:
        rows = [
            (
                ", ".join(layer.names),
                str(layer.shape),
                layer.format,
                f"{layer.density:.4f}",
                layer.reason,
            )
            for layer in (*self.layers, *self.left_dense)
        ]
        rows = [("layer", "shape", "format", "density", ""), *rows]
        widths = [max(len(row[i]) for row in rows) for i in range(5)]
        lines = [
            "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
        return "\n".join([*lines, f"density of the sparse layers together: {self.density:.4f}"])


@dataclass
class Target:
    """A dense weight that can become sparse, and the layers that use it."""

    names: list[str]
    weight: nn.Parameter

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.weight.shape)


def find_targets(
    model: nn.Module, exclude: Sequence[str]
) -> tuple[list[Target], list[LayerReport]]:
    """The convertible layers, and those that stay dense with the reason.

    Layers that share a weight are one target. A weight that another kind of module uses too (an
    embedding, say) stays dense, and so does a first convolution with few input channels, which has
    little to save and hurts when it is pruned.
    """
    exclude = check_texts(exclude, "exclude")
    by_weight: dict[int, Target] = {}
    targets: list[Target] = []
    dense: list[LayerReport] = []
    stem = _stem(model)
    for name, linear in dense_layers(model):
        reason = why_not_convertible(linear)
        if reason is None and linear is stem:
            reason = f"the first convolution, with fewer than {STEM_CHANNELS} input channels"
        weight = linear._parameters.get("weight")
        if reason is None and weight is not None:
            by_weight.setdefault(id(weight), Target([], weight)).names.append(name)
        else:
            shape = (
                (linear.out_features, linear.in_features)
                if isinstance(linear, nn.Linear)
                else tuple(linear.weight.shape)  # type: ignore[arg-type]
            )
            numel = math.prod(shape)
            dense.append(LayerReport([name], shape, "dense", numel, numel, str(reason)))
    shared = _used_elsewhere(model)
    for target in by_weight.values():
        why = ""
        pattern = first_match(target.names, exclude)
        if pattern is not None:
            why = f"excluded by {pattern!r}"
        elif id(target.weight) in shared:
            why = f"its weight is shared with {shared[id(target.weight)]}"
        if why:
            numel = target.weight.numel()
            dense.append(LayerReport(target.names, target.shape, "dense", numel, numel, why))
        else:
            targets.append(target)
    unmatched = [
        p
        for p in exclude
        if not any(fnmatch.fnmatch(n, p) for n, _ in model.named_modules(remove_duplicate=False))
    ]
    if unmatched:
        raise ValueError(
            f"Expected exclude to name modules of the model. Got {unmatched[0]!r}, "
            "which matches none."
        )
    return targets, dense


STEM_CHANNELS = 16


def _stem(model: nn.Module) -> nn.Module | None:
    """The first convolution, if it has fewer than :data:`STEM_CHANNELS` input channels."""
    for _, layer in dense_layers(model):
        if isinstance(layer, nn.Conv2d):
            return layer if layer.in_channels < STEM_CHANNELS else None
    return None


def first_match(names: Sequence[str], patterns: Sequence[str]) -> str | None:
    """The first ``fnmatch`` pattern that one of the names matches."""
    for pattern in patterns:
        if any(fnmatch.fnmatchcase(name, pattern) for name in names):
            return pattern
    return None


def _used_elsewhere(model: nn.Module) -> dict[int, str]:
    """Parameters of modules that cannot become sparse, by identity."""
    return {
        id(parameter): f"{name} ({type(module).__name__})"
        for name, module in model.named_modules()
        for parameter in module._parameters.values()
        if parameter is not None and why_not_convertible(module) is not None
    }


def convert(
    model: nn.Module,
    targets: list[Target],
    masks: Callable[[int, Target], Tensor],
    *,
    format: str,
    master: str = "compact",
) -> tuple[SparsifyReport, list[tuple[Target, SparseFormat]]]:
    """Replaces the targets by sparse layers, in place; the last step of every conversion.

    All masks and formats are there before the first layer is replaced, and an error after that
    brings all back.
    """
    if isinstance(model, DistributedDataParallel):
        raise ValueError(
            "Expected the model to be made sparse before it is wrapped in "
            "DistributedDataParallel. Got a wrapped model."
        )
    if format != "auto":
        _ = FORMATS[format]
    report = SparsifyReport()
    formats: list[tuple[Target, SparseFormat]] = []
    for i, target in enumerate(targets):
        mask = masks(i, target)
        numel, shape = mask.numel(), target.shape
        nnz = int(torch.count_nonzero(mask))
        if nnz == numel and format == "auto" and master == "compact":
            row = LayerReport(target.names, shape, "dense", nnz, numel, "all weights kept")
        else:
            dense = model.get_submodule(target.names[0])
            stored = build_format(dense, mask, format=format, master=master)
            formats.append((target, stored))
            row = LayerReport(target.names, shape, stored.name, nnz, numel)
        report.layers.append(row)
    install_all(model, [(target.names, stored) for target, stored in formats])
    return report, formats


def sparsify(
    model: nn.Module,
    density: float | None = None,
    *,
    mask: str | None = None,
    pattern: Pattern = UNSTRUCTURED,
    distribution: str = "erk",
    score: str = "magnitude",
    exclude: Sequence[str] = (),
    format: str = "auto",
    generator: torch.Generator | None = None,
    example: Any = None,
    training: bool = True,
) -> SparsifyReport:
    """Makes the Linear and Conv2d layers of a model sparse, in place; Parameter objects stay.

    Args:
        model: changed in place. An optimiser built before stays valid.
        density: fraction of weights kept over all converted layers, in [0, 1].
        mask: "nonzero" keeps what is not zero now ("my checkpoint already has zeros, make it
            fast") instead of ``density``.
        pattern: what masks may look like; only ``Unstructured()`` so far.
        distribution: "uniform", "er" or "erk": how the density is spread over layers.
        score: "magnitude" or "random": which weights are kept.
        exclude: names of layers to leave dense, as ``fnmatch`` patterns.
        format: "auto" or a format's name for all layers.
        generator: for random scores.
        example: what the model is called with; the kernels of each layer are then measured
            (:func:`sparsekern.tune`) and the report holds the ``plan``.
        training: with ``example``: choose by forward + backward; False: by the forward pass.

    Returns:
        A report; print it. Layers at density 1 stay plain modules but are counted.

    Raises:
        TypeError, ValueError: arguments out of range, unknown names, no layer to convert, a model
            wrapped in DistributedDataParallel.
    """
    check_model(model)
    _check_choices(density, mask, pattern)
    scores = SCORES[score]
    targets, left_dense = find_targets(model, exclude)
    if not targets:
        already = any(isinstance(module, SparseLayer) for module in model.modules())
        raise ValueError(
            "Expected a model with Linear or Conv2d layers to convert. Got none"
            f"{', the model is sparse already' if already else ''}."
        )
    if density is None:
        masks = [target.weight.detach() != 0 for target in targets]
    else:
        check_fraction(density, "density")
        counts = kept_counts([target.shape for target in targets], density, distribution)
        masks = [
            mask_ops.topk(scores(target.weight.detach(), generator), count)
            for target, count in zip(targets, counts, strict=True)
        ]
    report, _ = convert(model, targets, lambda i, _: masks[i], format=format)
    report.left_dense = left_dense
    note_reasons(model, report)
    if example is not None and any(row.format != "dense" for row in report.layers):
        report.plan = tune(model, example, training=training)
    return report


def note_reasons(model: nn.Module, report: SparsifyReport) -> None:
    """Tells the layers that stayed dense why, for :func:`sparsekern.explain`."""
    for row in (*report.layers, *report.left_dense):
        if row.format == "dense":
            for name in row.names:
                note_left_dense(model.get_submodule(name), row.reason)


def _check_choices(density: float | None, mask: str | None, pattern: Pattern) -> None:
    """Refuses arguments of :func:`sparsify` that contradict each other."""
    if not isinstance(pattern, Unstructured):
        raise NotImplementedError(f"Expected pattern to be Unstructured(). Got {pattern!r}.")
    if (density is None) == (mask is None):
        raise ValueError(
            f"Expected either density or mask. Got density={density!r} and mask={mask!r}."
        )
    if mask is not None and mask != "nonzero":
        raise ValueError(f"Expected mask to be 'nonzero'. Got {mask!r}.")
