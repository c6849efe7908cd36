"""``sk.sparsify``: a dense model becomes a sparse one, in place."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sparsekern._checks import check_fraction, check_model, check_texts, describe
from sparsekern.formats import FORMATS, SparseFormat
from sparsekern.nn.convert import (
    build_format,
    dense_layers,
    install_all,
    note_left_dense,
    why_not_convertible,
)
from sparsekern.nn.layer import SparseLayer
from sparsekern.nn.tune import tune
from sparsekern.patterns import UNSTRUCTURED, Pattern
from sparsekern.prune.distributed import check_not_sharded
from sparsekern.prune.masks import Given, given_masks
from sparsekern.prune.report import LayerReport, SparsifyReport, Target, first_match
from sparsekern.prune.scores import SCORES
from sparsekern.prune.select import (
    check_format,
    check_pattern,
    divided,
    layer_counts,
    select,
    stored_shapes,
)


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
        if linear is stem:
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
    pattern: Pattern = UNSTRUCTURED,
) -> tuple[SparsifyReport, list[tuple[Target, SparseFormat]]]:
    """Replaces the targets by sparse layers, in place; the last step of every conversion.

    All masks and formats are there before the first layer is replaced, and an error after that
    brings all back.
    """
    check_not_sharded(model)
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
            stored = build_format(dense, mask, format=format, master=master, pattern=pattern)
            formats.append((target, stored))
            row = LayerReport(target.names, shape, stored.name, nnz, numel)
        report.layers.append(row)
    install_all(model, [(target.names, stored) for target, stored in formats])
    return report, formats


def sparsify(
    model: nn.Module,
    density: float | None = None,
    *,
    mask: str | Mapping[str, Tensor] | None = None,
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
        mask: instead of ``density``: "nonzero" keeps what is not zero now ("my checkpoint already
            has zeros, make it fast") and takes the masks of ``torch.nn.utils.prune``, whose
            reparametrisation is removed; or a dict of bool tensors, shaped like the weights, by the
            names of layers: the others stay dense.
        pattern: what masks may look like: ``Unstructured()``; ``Block(h, w)``, which keeps the
            blocks of largest sum of scores (layers that the blocks do not divide stay dense); or
            ``FanIn()``, which keeps as many weights of every output, to whole ones.
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
    targets, not_divided = divided(model, targets, pattern)
    left_dense += not_divided
    given = None
    if mask is not None:
        given = given_masks(model, mask, targets, left_dense, exclude)
        targets, left_dense = given.targets, given.dense
    if not targets:
        already = any(isinstance(module, SparseLayer) for module in model.modules())
        raise ValueError(
            "Expected a model with Linear or Conv2d layers to convert. Got none"
            f"{', the model is sparse already' if already else ''}."
        )
    if given is None:
        assert density is not None
        check_fraction(density, "density")
        check_format(format, pattern)
        shapes = stored_shapes(model, targets)
        counts = layer_counts(shapes, density, distribution, pattern)
        masks = [
            select(model, target, scores(target.weight.detach(), generator), count, pattern)
            for target, count in zip(targets, counts, strict=True)
        ]
        given = Given(targets, masks)
    report, _ = convert(model, targets, given.mask, format=format, pattern=pattern)
    given.note(report.layers)
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


def _check_choices(
    density: float | None, mask: str | Mapping[str, Tensor] | None, pattern: Pattern
) -> None:
    """Refuses arguments of :func:`sparsify` that contradict each other."""
    check_pattern(pattern)
    if (density is None) == (mask is None):
        got = "a dict" if isinstance(mask, Mapping) else describe(mask)
        raise ValueError(
            f"Expected either density or mask. Got density={density!r} and mask={got}."
        )
    if mask is not None and mask != "nonzero" and not isinstance(mask, Mapping):
        raise ValueError(
            f"Expected mask to be 'nonzero' or a dict of tensors. Got {describe(mask)}."
        )
