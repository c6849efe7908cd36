"""`python -m bench.tables`: the tables and pictures of the pages, from the committed results.

Nothing measured is ever typed: what stands between ``<!-- table: NAME -->`` and ``<!-- end -->`` is
written by this file, and tests/test_docs.py fails when a page is not what it would write.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.gpu import pages
from bench.record import ROOT
from bench.table_texts import (
    RESULTS,
    TITLES,
    Row,
    changes,
    main_job,
    memory,
    networks,
    never_slower,
    newest,
    optimizer,
    peak_share,
    speedups,
    topology,
)

PICTURES = ROOT.parent / "docs"
PAGES = (ROOT.parent / "README.md", PICTURES / "benchmarks.md", PICTURES / "gpu.md")
COLORS = {"sparsekern_csr": "#d1495b", "sparseprop": "#2e86ab", "sparselab": "#4c566a"}

TABLES: dict[str, Callable[[Path], str]] = {
    "main job": main_job,
    "linear": speedups("linear", "forward_backward"),
    "linear forward": speedups("linear", "forward"),
    **{f"small batch {n}": speedups("small_batch", "forward", n) for n in (1, 8, 16)},
    "block": speedups("block", "forward_backward"),
    "block forward": speedups("block", "forward"),
    "conv2d": speedups("conv2d", "forward_backward"),
    "conv2d forward": speedups("conv2d", "forward"),
    "step sgd": speedups("step", "sgd"),
    "step adamw": speedups("step", "adamw"),
    "networks": networks,
    "topology": topology,
    "changes": changes,
    "peak share": peak_share,
    "memory": memory,
    "never slower": never_slower,
    "optimizer adamw": optimizer("adamw"),
    "optimizer sgd": optimizer("sgd"),
    "gpu goals": pages.goals,
    "gpu ceilings": pages.ceilings,
    "gpu tests": pages.tests,
}


def fill(text: str, results: Path = RESULTS) -> str:
    """``text`` with every marked table written anew."""

    def block(match: re.Match[str]) -> str:
        name = match[1]
        if name not in TABLES:
            raise ValueError(f"Expected a table of {', '.join(TABLES)}. Got {name!r}.")
        return f"<!-- table: {name} -->\n{TABLES[name](results)}\n<!-- end -->"

    return re.sub(r"<!-- table: ([\w ]+) -->\n.*?<!-- end -->", block, text, flags=re.DOTALL)


def draw(suite: str, path: Path) -> None:
    """Speed-up over density, forward + backward: one panel a shape, one row of panels a machine."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = [row for row in newest(suite) if row["pass"] == "forward_backward"]
    if not rows:
        return
    machines = sorted({row["device"] for row in rows})
    shapes = list(dict.fromkeys(tuple(row["shape"]) for row in rows))
    size = (3 * len(shapes), 3.3 * len(machines))
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    strips = figure.subfigures(len(machines), 1, squeeze=False)[:, 0]
    for strip, machine in zip(strips, machines, strict=True):
        strip.suptitle(machine, fontsize=10, color="#4c566a")
        axes = strip.subplots(1, len(shapes), sharey=True, squeeze=False)[0]
        for panel, shape in zip(axes, shapes, strict=True):
            own = [r for r in rows if r["device"] == machine and tuple(r["shape"]) == shape]
            _draw_panel(panel, own)
            panel.set_title(f"batch {shape[0]}, {shape[1]} to {shape[2]}", fontsize=10)
        axes[0].set_ylabel("speed-up over dense")
        axes[-1].legend(frameon=False, fontsize=9)
    figure.savefig(path, dpi=110)


def _draw_panel(panel: Any, rows: list[Row]) -> None:
    """One line a contender, both axes logarithmic."""
    for name, color in COLORS.items():
        own = [row for row in rows if row["variant"] == name]
        points = sorted((row["density"], row["speedup_over_dense"]) for row in own)
        if points:
            label = TITLES[name].strip("*")
            panel.plot(*zip(*points, strict=True), "o-", color=color, label=label, ms=4)
    panel.axhline(1, color="#999999", lw=1, ls="--")
    panel.set(xscale="log", yscale="log", xlabel="density")
    panel.set_xticks([0.01, 0.05, 0.1, 0.2], ["0.01", "0.05", "0.1", "0.2"], minor=False)
    panel.set_xticks([], minor=True)
    panel.set_yticks([1, 2, 5, 10, 20], ["1x", "2x", "5x", "10x", "20x"])
    panel.set_yticks([], minor=True)
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(axis="y", color="#e5e5e5", lw=0.8)


def main() -> None:
    for page in PAGES:
        page.write_text(fill(page.read_text("utf-8")), "utf-8")
    draw("linear", PICTURES / "linear.png")


if __name__ == "__main__":
    main()
