"""The end of a run for people: a table and a picture."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

from sparsekern.train.files import TEMPORARY
from sparsekern.train.metrics import Row
from sparsekern.train.network import NETWORKS
from sparsekern.train.summary import total_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TITLES = {"dense": "dense", "sparse": "sparse", "small_dense": "small dense"}
COLORS = {"dense": "#4c566a", "sparse": "#d1495b", "small_dense": "#2e86ab"}
SHADES = (1.0, 0.62, 0.3)  # of the three parts of a stacked bar


def networks_of(summary: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The networks that a run has trained, in the house's order."""
    return {name: summary[name] for name in NETWORKS if name in summary}


def report_table(summary: dict[str, Any]) -> Group:
    """Accuracy, times and bytes of the networks and their ratios to the dense one."""
    networks = networks_of(summary)
    dense = networks.get("dense")
    seeds = len(summary["seeds"])
    times = _table(
        f"Test accuracy ({_seeds(summary)}) and milliseconds of a training step",
        ("accuracy %", "step", "forward", "backward", "update", "speed-up", "train s"),
    )
    sizes = _table(
        "Memory of the prunable layers",
        ("density", "weights", "indices", "optimiser", "together", "ratio"),
    )
    for name, each in networks.items():
        deviation = f" ± {100 * each['accuracy_std']:.2f}" if seeds > 1 else ""
        parts = (each[f"{part}_ms"] for part in ("step", "forward", "backward", "update"))
        times.add_row(
            TITLES[name],
            f"{100 * each['accuracy']:.2f}{deviation}",
            *(f"{part:.2f}" for part in parts),
            _ratio(dense, each, lambda n: n["step_ms"], inverse=True),
            f"{each['train_s']:.1f}",
            style="bold" if name == "sparse" else "",
        )
        sizes.add_row(
            TITLES[name],
            f"{each['density']:.4g}",
            *(readable_bytes(each[f"{part}_bytes"]) for part in ("weight", "index", "state")),
            readable_bytes(total_bytes(each)),
            _ratio(dense, each, total_bytes),
            style="bold" if name == "sparse" else "",
        )
    return Group(times, "", sizes, "", Text(_footnote(summary), style="dim"))


def _table(title: str, columns: tuple[str, ...]) -> Table:
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        header_style="",
        box=SIMPLE_HEAD,
        show_edge=False,
        padding=(0, 1, 0, 0),
    )
    table.add_column("network", no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _ratio(
    dense: dict[str, Any] | None,
    each: dict[str, Any],
    number: Callable[[dict[str, Any]], float],
    *,
    inverse: bool = False,
) -> str:
    """How many times the dense network's number, or (``inverse``) how many times better."""
    if dense is None:
        return "-"
    ratio = number(each) / number(dense)
    return f"{1 / ratio:.2f}x" if inverse else f"{ratio:.3f}x"


def _seeds(summary: dict[str, Any]) -> str:
    count = len(summary["seeds"])
    return "1 seed" if count == 1 else f"mean of {count} seeds"


def _footnote(summary: dict[str, Any]) -> str:
    sparse, versions = summary["sparse"], summary["versions"]
    lines = []
    if sparse["topology_ms"]:
        lines.append(
            f"A step with a topology update takes {sparse['topology_ms']:.1f} ms longer; "
            "update has its share."
        )
    peak, end = summary["peak_bytes_ratio"], summary["bytes_ratio"]
    if peak is not None and peak > 1.01 * end:
        lines.append(f"The sparse network held up to {peak:.2f}x the dense bytes in mid-run.")
    lines.append(_machine_line(versions))
    return "\n".join(lines)


def _machine_line(versions: dict[str, Any]) -> str:
    return (
        f"{versions['machine']}, {versions['threads']} threads, "
        f"torch {versions['torch']}, {versions['isa'] or 'no native library'}"
    )


def readable_bytes(count: float) -> str:
    """``17383424`` as ``17.4 MB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.0f} B" if unit == "B" else f"{_three_digits(count)} {unit}"
        count /= 1000
    return f"{_three_digits(count)} TB"


def _three_digits(number: float) -> str:
    return f"{number:#.3g}".rstrip(".")


def draw_report(summary: dict[str, Any], rows: list[Row], path: Path) -> None:
    """Draws ``report.png``: accuracy and loss over epochs, step times, bytes.

    Args:
        summary: of the run.
        rows: all metrics of the run.
        path: of the picture, which is replaced at once or not at all.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 2)
    names = list(networks_of(summary))
    _draw_curves(axes[0, 0], rows, names, lambda row: 100 * row["test_accuracy"])
    axes[0, 0].set(title="Test accuracy", xlabel="epoch", ylabel="%")
    _zoom_on_the_end(axes[0, 0], rows)
    axes[0, 0].legend(loc="lower right", frameon=False)
    _draw_curves(axes[0, 1], rows, names, lambda row: row["train_loss"])
    axes[0, 1].set(title="Training loss", xlabel="epoch", ylabel="cross entropy", yscale="log")
    _draw_times(axes[1, 0], summary, names)
    _draw_bytes(axes[1, 1], summary, names)
    for panel in axes.flat:
        panel.spines[["top", "right"]].set_visible(False)
        panel.title.set_fontweight("bold")
        panel.grid(axis="y", color="#e5e5e5", linewidth=0.8)
        panel.set_axisbelow(True)
    title = f"{summary['recipe']}: density {summary['sparse']['density']:.3g}, {_seeds(summary)}"
    figure.suptitle(f"{title}\n{_machine_line(summary['versions'])}", fontsize=11)
    temporary = path.with_name(f"{TEMPORARY}{path.name}")
    figure.savefig(temporary, dpi=120, format="png")
    temporary.replace(path)


def _draw_curves(
    axes: Axes, rows: list[Row], names: list[str], number: Callable[[Row], float]
) -> None:
    """The mean over seeds as a thick line, each seed as a thin one."""
    for name in names:
        curves: dict[int, dict[int, float]] = {}
        for row in rows:
            if row["network"] == name:
                curves.setdefault(row["seed"], {})[row["epoch"]] = number(row)
        for curve in curves.values():
            if len(curves) > 1:
                axes.plot(*zip(*curve.items(), strict=True), color=COLORS[name], lw=0.6, alpha=0.5)
        epochs = sorted(set.intersection(*(set(curve) for curve in curves.values())))
        mean = [sum(curve[epoch] for curve in curves.values()) / len(curves) for epoch in epochs]
        axes.plot(epochs, mean, color=COLORS[name], lw=2, label=TITLES[name])


def _zoom_on_the_end(axes: Axes, rows: list[Row]) -> None:
    """Leaves out the steep beginning, where all networks are far from what matters."""
    last = max(row["epoch"] for row in rows)
    shown = [100 * row["test_accuracy"] for row in rows if row["epoch"] > last // 4]
    low, high = min(shown), max(shown)
    margin = max(0.08 * (high - low), 0.3)
    axes.set_ylim(max(low - margin, 0), min(high + margin, 100))


def _draw_times(axes: Axes, summary: dict[str, Any], names: list[str]) -> None:
    parts = {"forward": "forward_ms", "backward": "backward_ms", "update": "update_ms"}
    speedup = summary["speedup"]
    labels = [f"{summary[name]['step_ms']:.1f} ms" for name in names]
    if speedup is not None:
        labels = [
            f"{label}\n{summary['dense']['step_ms'] / summary[name]['step_ms']:.1f}x faster"
            if name != "dense"
            else label
            for name, label in zip(names, labels, strict=True)
        ]
    _draw_stacks(axes, summary, names, parts, labels)
    axes.set(title="Time of a training step", ylabel="milliseconds")


def _draw_bytes(axes: Axes, summary: dict[str, Any], names: list[str]) -> None:
    parts = {"weights": "weight_bytes", "indices": "index_bytes", "optimiser state": "state_bytes"}
    labels = [readable_bytes(total_bytes(summary[name])) for name in names]
    if summary["bytes_ratio"] is not None:
        dense = total_bytes(summary["dense"])
        labels = [
            f"{label}\n{total_bytes(summary[name]) / dense:.3f}x" if name != "dense" else label
            for name, label in zip(names, labels, strict=True)
        ]
    _draw_stacks(axes, summary, names, parts, labels)
    axes.set(title="Memory of the prunable layers", ylabel="MB")
    axes.yaxis.set_major_formatter(lambda count, _: f"{count / 1e6:g}")


def _draw_stacks(
    axes: Axes, summary: dict[str, Any], names: list[str], parts: dict[str, str], labels: list[str]
) -> None:
    """Bars of three parts each, the whole written above."""
    from matplotlib.patches import Patch

    bottoms = [0.0] * len(names)
    for key, shade in zip(parts.values(), SHADES, strict=True):
        for i, name in enumerate(names):
            height = summary[name][key]
            axes.bar(i, height, bottom=bottoms[i], width=0.55, color=_tint(COLORS[name], shade))
            bottoms[i] += height
    for i, label in enumerate(labels):
        axes.annotate(
            label,
            (i, bottoms[i]),
            xytext=(0, 4),
            textcoords="offset points",
            ha="center",
            va="bottom",
            fontsize=9,
        )
    axes.set_xticks(range(len(names)), [TITLES[name] for name in names])
    axes.set_ylim(0, 1.22 * max(bottoms))
    swatches = [
        Patch(color=_tint("#444444", shade), label=part)
        for part, shade in zip(reversed(parts), reversed(SHADES), strict=True)
    ]
    axes.legend(handles=swatches, frameon=False, loc="upper right")


def _tint(color: str, shade: float) -> tuple[float, float, float]:
    """The colour mixed with white."""
    from matplotlib.colors import to_rgb

    red, green, blue = (shade * part + 1 - shade for part in to_rgb(color))
    return red, green, blue
