"""A Pruner over a model that is sparse already: what it takes over, and what it refuses."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from torch.optim import Optimizer

from sparsekern._checks import check_model, check_positive
from sparsekern.formats import FORMATS, SparseFormat
from sparsekern.nn.layer import SparseLayer
from sparsekern.ops import bsr, condensed
from sparsekern.patterns import UNSTRUCTURED, Block, FanIn
from sparsekern.prune.distributed import check_not_sharded
from sparsekern.prune.method import Method
from sparsekern.prune.select import check_format, layer_counts, unit
from sparsekern.prune.sparsify import LayerReport, SparsifyReport, find_targets, first_match

TOLERANCE = 0.01  # relative, of a method's density against that of the model


def sparse_weights(model: nn.Module) -> list[tuple[list[str], SparseFormat]]:
    """The formats of a model, each with the names of all layers that use it."""
    found: dict[int, tuple[list[str], SparseFormat]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, SparseLayer):
            found.setdefault(id(module.format), ([], module.format))[0].append(name)
    return list(found.values())


def adopt(
    model: nn.Module, method: Method, exclude: Sequence[str], format: str
) -> tuple[SparsifyReport, list[tuple[str, SparseFormat, int]]]:
    """The sparse layers of a model, which keep their topology as the start of ``method``.

    Excluded ones keep it for good. Linear layers that are dense in between count as kept to the
    full, as those do that ``sparsify`` leaves dense.

    Returns:
        The report, and name, format and final number of weights of each layer to prune; none if
        no sparse layer is there, or all are excluded (only these are in the report then).

    Raises:
        ValueError: a layer has not the master that the method needs or another format than the one
            asked for; the model's density does not fit the method's.
    """
    report = SparsifyReport()
    found = []
    for names, stored in sparse_weights(model):
        pattern = first_match(names, exclude)
        row = LayerReport(names, stored.shape, stored.name, stored.nnz, stored.numel)
        if pattern is None:
            _check_format(names[0], stored, method, format)
            report.layers.append(row)
            found.append((names[0], stored))
        else:
            row.reason = f"sparse already, excluded by {pattern!r}"
            report.left_dense.append(row)
    if not found:
        return report, []
    targets, dense = find_targets(model, exclude)
    report.left_dense += dense
    for target in targets:
        if method.master == "dense":
            raise ValueError(
                f"Expected exclude to name the layers that stay dense in a model that is sparse "
                f"already, for {method.name}. Got a model in which {target.names[0]} is dense."
            )
        numel, why = target.weight.numel(), "dense in a model that is sparse already"
        report.layers.append(LayerReport(target.names, target.shape, "dense", numel, numel, why))
    counts = _final_counts(report, [stored for _, stored in found], method)
    return report, [(*pair, count) for pair, count in zip(found, counts, strict=True)]


def _check_format(name: str, stored: SparseFormat, method: Method, format: str) -> None:
    if method.master == "dense" and stored.master != "dense":
        raise ValueError(
            f"Expected {name} to have a dense master, which {method.name} needs. Got "
            f"format {stored.name!r}: give the Pruner the dense model instead."
        )
    if stored.pattern not in (UNSTRUCTURED, method.pattern):
        raise ValueError(
            f"Expected pattern of {method.name} to be that of {name}, {stored.pattern!r}, which is "
            f"sparse already. Got {method.pattern!r}."
        )
    if isinstance(method.pattern, Block):
        method.pattern.check_divides(stored.shape)
        bsr.block_mask(bsr.as_matrix(stored.mask()), method.pattern.shape)
    if isinstance(method.pattern, FanIn):
        condensed.fan_in(stored.mask())
    if format not in ("auto", stored.name):
        raise ValueError(
            f"Expected format to be auto or {stored.name!r}, that of {name}, which is sparse "
            f"already. Got {format!r}."
        )


def _final_counts(report: SparsifyReport, formats: list[SparseFormat], method: Method) -> list[int]:
    """Weights that each layer ends with: its own number, or what a ramp from there can reach."""
    if method.master == "compact":
        wanted, got, slack = method.density, report.density, TOLERANCE * method.density
        numel = sum(row.numel for row in report.layers)
        steps = sum(unit(method.pattern, stored.shape) for stored in formats)
        if abs(got - wanted) > max(slack, steps / max(numel, 1)):
            raise ValueError(
                f"Expected density of {method.name} to be that of the model, {got:.4g}, which is "
                f"sparse already (exclude names layers that do not count). Got {wanted}."
            )
        return [stored.nnz for stored in formats]
    shapes = [stored.shape for stored in formats]
    wanted_counts = layer_counts(shapes, method.density, method.distribution, method.pattern)
    final = [min(n, stored.nnz) for n, stored in zip(wanted_counts, formats, strict=True)]
    if sum(final) < (1 - TOLERANCE) * sum(wanted_counts):
        most = sum(final) / sum(stored.numel for stored in formats)
        raise ValueError(
            f"Expected density of {method.name}, spread by {method.distribution!r}, to be within "
            f"what a model that is sparse already has left, {most:.4g}. Got {method.density}."
        )
    return final


def check_arguments(
    model: nn.Module, optimizer: Optimizer, method: Method, total_steps: int, format: str
) -> None:
    """What can be said before the model is looked at."""
    check_model(model)
    check_not_sharded(model)
    if not isinstance(optimizer, Optimizer):
        raise TypeError(
            f"Expected optimizer to be a torch.optim.Optimizer. Got {type(optimizer).__name__}."
        )
    if not isinstance(method, Method):
        raise TypeError(f"Expected method to be a Method. Got {type(method).__name__}.")
    check_positive(total_steps, "total_steps")
    if total_steps < method.min_steps:
        raise ValueError(
            f"Expected total_steps to be at least {method.min_steps} for {method.name}. "
            f"Got {total_steps}: no update fits."
        )
    if format == "auto":
        return
    check_format(format, method.pattern)
    if FORMATS[format].master != "dense" and method.master == "dense":
        raise ValueError(
            f"Expected format to be auto or masked for {method.name}, which needs dense masters. "
            f"Got {format!r}."
        )
