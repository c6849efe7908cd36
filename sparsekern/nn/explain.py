"""``sk.explain``: what every layer runs, what it costs, and why."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import nn

from sparsekern.formats import SparseFormat
from sparsekern.formats.plan import DENSE_LAYER, rule_in_words, sparse_weights, unwrapped
from sparsekern.nn.convert import why_left_dense
from sparsekern.nn.fuse import fused_activations
from sparsekern.nn.measure import capture
from sparsekern.nn.transposed import is_transposed_linear
from sparsekern.nn.tune import LayerTimes, uses_of


@dataclass(frozen=True)
class ExplanationRow:
    """One weight, and the layers that use it.

    Attributes:
        names: of the layers.
        shape: of the dense weight.
        format, variant: how the weight is stored and what multiplies by it; "dense", "torch" for
            a plain layer.
        density: fraction of kept weights.
        ms, ms_dense: milliseconds of what runs, and of a plain torch layer, summed over the calls
            of one pass of the model; None if nothing was measured.
        bytes, bytes_dense: of weights and all indices, and of the dense weight.
        why: what decided.
    """

    names: tuple[str, ...]
    shape: tuple[int, ...]
    format: str
    variant: str
    density: float
    ms: float | None
    ms_dense: float | None
    bytes: int
    bytes_dense: int
    why: str


_HEAD: tuple[str, ...] = (
    *("layer", "shape", "format", "variant", "density"),
    *("ms", "ms dense", "bytes", "bytes dense", "why"),
)


@dataclass(frozen=True)
class Explanation:
    """What :func:`explain` found; print it, or read ``rows``."""

    rows: list[ExplanationRow] = field(default_factory=list)

    def __str__(self) -> str:
        table = [_HEAD]
        table += [_cells(row) for row in self.rows]
        widths = [max(len(cells[i]) for cells in table) for i in range(len(table[0]))]
        numbers = range(4, 9)
        lines = [
            "  ".join(
                cell.rjust(width) if i in numbers else cell.ljust(width)
                for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
            ).rstrip()
            for cells in table
        ]
        return "\n".join([*lines, self._together()])

    def _together(self) -> str:
        held, dense = (sum(getattr(r, key) for r in self.rows) for key in ("bytes", "bytes_dense"))
        text = f"together: {held:,} bytes, dense {dense:,}"
        timed = [row for row in self.rows if row.ms is not None and row.ms_dense is not None]
        if timed:
            ms, ms_dense = (sum(getattr(row, k) for row in timed) for k in ("ms", "ms_dense"))
            text += f"; {ms:.3f} ms, dense {ms_dense:.3f} ({ms_dense / ms:.2f}x)"
        return text


def explain(
    model: nn.Module, example: Any = None, *, training: bool = True, cache: bool = True
) -> Explanation:
    """Says for each layer what runs and why; changes nothing.

    Rows for the sparse layers and for Linear and convolution layers that are dense. Times come from
    the plan that was applied (:func:`sparsekern.tune`), or are measured now if there is an
    ``example``; else there are none.

    Args:
        model: sparse, dense, or both.
        example: what the model is called with, as for :func:`sparsekern.tune`.
        training: measure forward + backward; False: the forward pass alone.
        cache: use and keep measured times on disk.

    >>> model = torch.nn.Sequential(sk.nn.SparseLinear(64, 64, density=0.1), torch.nn.ReLU())
    >>> row = sk.explain(model).rows[0]
    >>> row.format, row.ms, row.why
    ('csr', None, 'rule: csr up to density 0.4 on cpu')
    """
    inner = unwrapped(model)
    sparse = sparse_weights(inner)
    dense = _dense_layers(inner)
    times: dict[tuple[str, ...], dict[str, float]] = {}
    if example is not None:
        weights = [names for names, _ in sparse] + [names for names, _ in dense]
        times = _measure(inner, weights, example, training, cache)
    fused = fused_activations(inner)
    rows = [_sparse_row(names, format, times.get(names), fused) for names, format in sparse]
    rows += [_dense_row(names, layer, times.get(names)) for names, layer in dense]
    order = {name: i for i, (name, _) in enumerate(inner.named_modules(remove_duplicate=False))}
    return Explanation(sorted(rows, key=lambda row: order[row.names[0]]))


def _measure(
    model: nn.Module, weights: list[tuple[str, ...]], example: Any, training: bool, cache: bool
) -> dict[tuple[str, ...], dict[str, float]]:
    """Milliseconds by variant for each weight that the example reaches."""
    layers = dict.fromkeys(model.get_submodule(name) for names in weights for name in names)
    calls = capture(model, example, list(layers), training)
    known = LayerTimes(cache, training)
    found = {}
    for names in weights:
        total = known.total(uses_of(model, names, calls))
        if total:
            found[names] = total.get("forward_backward") or total["forward"]
    known.save()
    return found


def _dense_layers(model: nn.Module) -> list[tuple[tuple[str, ...], nn.Module]]:
    """Linear and convolution layers with a weight of their own, those in several places once."""
    found: dict[int, tuple[list[str], nn.Module]] = {}
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, kinds) or is_transposed_linear(module):
            key = id(module._parameters.get("weight", module))
            found.setdefault(key, ([], module))[0].append(name)
    return [(tuple(names), module) for names, module in found.values()]


def _sparse_row(
    names: tuple[str, ...],
    format: SparseFormat,
    times: dict[str, float] | None,
    fused: dict[str, str],
) -> ExplanationRow:
    plan = format.measured
    if plan is not None and not plan.holds_at(format.density):
        why = f"{rule_in_words(format)}; was measured at density {plan.density:.3g}"
        plan = None
    else:
        why = rule_in_words(format) if plan is None else plan.why
    if times is None and plan is not None:
        times = plan.times_ms
    times = times or {}
    if len(names) > 1:
        why = f"tied; {why}"
    if format.fuses:
        for activation in dict.fromkeys(fused[name] for name in names if name in fused):
            why += f"; {activation} fused"
    return ExplanationRow(
        names=names,
        shape=format.shape,
        format=format.name,
        variant=format.running,
        density=format.density,
        ms=times.get(format.running),
        ms_dense=times.get(DENSE_LAYER),
        bytes=format.nbytes.total,
        bytes_dense=format.numel * format.parameter.element_size(),
        why=why,
    )


def _dense_row(
    names: tuple[str, ...], layer: Any, times: dict[str, float] | None
) -> ExplanationRow:
    weight = layer.weight
    ms = None if times is None else times.get(DENSE_LAYER)
    return ExplanationRow(
        names=names,
        shape=tuple(weight.shape),
        format="dense",
        variant="torch",
        density=1.0,
        ms=ms,
        ms_dense=ms,
        bytes=weight.nbytes,
        bytes_dense=weight.nbytes,
        why=why_left_dense(layer),
    )


def _cells(row: ExplanationRow) -> tuple[str, ...]:
    return (
        ", ".join(name or "(model)" for name in row.names),
        str(row.shape),
        row.format,
        row.variant,
        f"{row.density:.4f}",
        "-" if row.ms is None else f"{row.ms:.3f}",
        "-" if row.ms_dense is None else f"{row.ms_dense:.3f}",
        f"{row.bytes:,}",
        f"{row.bytes_dense:,}",
        row.why,
    )
