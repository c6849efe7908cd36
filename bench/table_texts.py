"""The tables of the pages, from the committed results: one function a table."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.record import ROOT

RESULTS = ROOT / "results"
TITLES = {
    "sparsekern_condensed": "**sparsekern**, `condensed`",
    "sparsekern_csr": "**sparsekern**",
    **{
        f"sparsekern_bsr_{shape}": f"**sparsekern**, blocks of {shape.replace('x', ' x ')}"
        for shape in ("4x4", "8x8", "16x16", "32x32", "1x16")
    },
    "sparsekern_channels_last": "**sparsekern**, channels_last",
    "sparseprop": "sparseprop",
    "sparselab": "sparselab",
    "torch_csr": "torch CSR (no gradient)",
    "dense_nchw": "dense, NCHW",
    "dense_channels_last": "dense, channels_last",
    "dense_again": "dense again (noise)",
}
OPTIMIZER_STEPS = {
    "masked": "**sparsekern**, dense state",
    "compact": "**sparsekern**, compact values",
    "compact_fused": "torch fused, compact values",
    "fused": "torch fused, no masks",
    "fused_again": "the same again (noise)",
}
Row = dict[str, Any]


def clean_rows(suite: str, results: Path = RESULTS) -> list[Row]:
    """All rows of a suite by machine; unverified and unclean ones do not count."""
    files = sorted(results.glob("*/*.jsonl"), key=lambda file: file.parent)
    rows = [json.loads(line) for file in files for line in file.read_text("utf-8").splitlines()]
    return [
        row
        for row in rows
        if row["suite"] == suite and row["gate"] == "green" and not row["commit"].endswith("-dirty")
    ]


def newest(suite: str, results: Path = RESULTS) -> list[Row]:
    """The rows of the newest run on each machine."""
    rows = clean_rows(suite, results)
    last: dict[str, str] = {}
    for row in rows:
        last[row["device"]] = max(row["date"], last.get(row["device"], ""))
    return [row for row in rows if row["date"] == last[row["device"]]]


def geomean(values: list[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def markdown(head: list[str], body: list[list[str]]) -> str:
    rule = ["---"] + ["---:"] * (len(head) - 1)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *body))


def speedups(suite: str, which: str, batch: int | None = None) -> Callable[[Path], str]:
    """A table of geometric means over the suite's shapes, one column a density."""

    def table(results: Path) -> str:
        parts = []
        rows = newest(suite, results)
        for machine in sorted({row["device"] for row in rows}):
            own = [
                row
                for row in rows
                if row["device"] == machine
                and row["pass"] == which
                and row.get("main", True)
                and (batch is None or row["shape"][0] == batch)
            ]
            densities = sorted({row["density"] for row in own}, reverse=True)
            body = []
            for name, title in TITLES.items():
                ratios = {
                    d: [
                        row["speedup_over_dense"]
                        for row in own
                        if row["variant"] == name and row["density"] == d
                    ]
                    for d in densities
                }
                if all(ratios.values()):
                    cells = [f"{geomean(ratios[d]):.2f}x" for d in densities]
                    body.append([title, *cells])
            heading = [f"density {d:.2f}" for d in densities]
            first = own[0]
            parts.append(
                markdown([which.replace("_", " + "), *heading], body)
                + f"\n\n{machine}, float32, torch {first['torch']}, commit `{first['commit']}`."
            )
        return "\n\n".join(parts)

    return table


def topology(results: Path) -> str:
    """A change of topology as a fraction of a training step: geometric means over the shapes."""
    parts = []
    rows = [row for row in newest("topology", results) if row["variant"] == "topology"]
    for machine in sorted({row["device"] for row in rows}):
        own = [row for row in rows if row["device"] == machine]
        densities = sorted({row["density"] for row in own}, reverse=True)
        body = []
        for op, optimizer in sorted({(row["op"], row["pass"]) for row in own}):
            ratios = {
                d: [
                    row["of_a_step"]
                    for row in own
                    if (row["op"], row["pass"], row["density"]) == (op, optimizer, d)
                ]
                for d in densities
            }
            body.append([f"{op}, {optimizer}", *(f"{geomean(ratios[d]):.2f}" for d in densities)])
        heading = [f"density {d:.2f}" for d in densities]
        parts.append(
            markdown(["topology change / training step", *heading], body)
            + f"\n\nBatch {own[0]['shape'][0]}; {machine}, float32, torch {own[0]['torch']}, "
            f"commit `{own[0]['commit']}`."
        )
    return "\n\n".join(parts)


CHANGES = {
    "scores_given": "scores given",
    "rigl": "RigL's update",
    "set": "SET's update",
    "topk": "top-k as a bool mask",
    "topk_bits": "top-k as bits",
}
NETWORKS = {
    "mlp": "MLP, 4 x (1024 to 1024)",
    "resnet18": "ResNet-18, 32 x 32",
    "many_weights": "25 million weights",
    "mlp_1024x4": "MLP, 784, 4 x 1024, 10",
    "resnet20": "ResNet-20, 32 x 32",
    "vgg16": "VGG-16, 32 x 32",
    "vit_s": "ViT-S, 65 tokens",
}


def networks(results: Path) -> str:
    """Training steps of whole networks, in ms and over the dense network in its better layout."""
    parts = []
    rows = newest("networks", results)
    for machine in sorted({row["device"] for row in rows}):
        own = [row for row in rows if row["device"] == machine]
        body = [
            [
                NETWORKS[row["op"]],
                str(row["shape"][0]),
                f"{row['density']:.2f}",
                f"{row['dense_p50_ms']:.1f}",
                f"{row['p50_ms']:.1f}",
                f"{row['speedup_over_dense']:.2f}x",
            ]
            for row in own
        ]
        head = ["network", "batch", "density", "dense ms", "sparse ms", "speed-up"]
        first = own[0]
        parts.append(
            markdown(head, body) + f"\n\n{machine}, {first['threads']} threads, float32, "
            f"torch {first['torch']}, commit `{first['commit']}`."
        )
    return "\n\n".join(parts)


def changes(results: Path) -> str:
    """Changes of topology of whole networks, in ms and over training steps of the network."""
    parts = []
    rows = newest("changes", results)
    for machine in sorted({row["device"] for row in rows}):
        own = [row for row in rows if row["device"] == machine]
        body = [
            [
                NETWORKS[row["op"]],
                f"{row['density']:.2f}",
                CHANGES[row["variant"]],
                f"{row['p50_ms']:.2f}",
                *(
                    "" if row[key] is None else f"{row[key]:.2f}"
                    for key in ("of_a_step", "of_a_dense_step")
                ),
            ]
            for row in own
            if row["variant"] in CHANGES
        ]
        first = own[0]
        parts.append(
            markdown(["network", "density", "change", "ms", "of a step", "of a dense step"], body)
            + f"\n\nBatch {first['shape'][0]}, {first['threads']} threads; {machine}, float32, "
            f"torch {first['torch']}, commit `{first['commit']}`."
        )
    return "\n\n".join(parts)


def optimizer(op: str) -> Callable[[Path], str]:
    """Speed-up of one optimiser step over torch's fused step with masks, by number of weights."""

    def table(results: Path) -> str:
        parts = []
        rows = [row for row in newest("optimizer", results) if row["op"] == op]
        for machine in sorted({row["device"] for row in rows}):
            own = [row for row in rows if row["device"] == machine]
            densities = sorted({row["density"] for row in own}, reverse=True)
            body = []
            for weights in sorted({row["shape"][0] for row in own}):
                found = {
                    (row["variant"], row["density"]): row["speedup_over_fused_and_masks"]
                    for row in own
                    if row["shape"][0] == weights
                }
                for name, title in OPTIMIZER_STEPS.items():
                    cells = [f"{found[name, d]:.2f}x" for d in densities]
                    body.append([f"{weights / 1e6:.0f}M, {title}", *cells])
            parts.append(
                markdown([f"{op} step", *(f"density {d:.2f}" for d in densities)], body)
                + f"\n\n{machine}, float32, torch {own[0]['torch']}, commit `{own[0]['commit']}`."
            )
        return "\n\n".join(parts)

    return table


def main_job(results: Path) -> str:
    """The table of `make train`, from the newest run of suite `train` on each machine."""
    parts = []
    rows = newest("train", results)
    for machine in sorted({row["device"] for row in rows}):
        own = {row["network"]: row for row in rows if row["device"] == machine}
        dense = own["dense"]
        body = []
        for name, each in own.items():
            total = sum(each[f"{part}_bytes"] for part in ("weight", "index", "state"))
            whole = sum(dense[f"{part}_bytes"] for part in ("weight", "index", "state"))
            times = [f"{each[f'{part}_ms']:.2f}" for part in ("forward", "backward", "update")]
            body.append(
                [
                    name.replace("_", " "),
                    f"{each['density']:.3g}",
                    f"{100 * each['accuracy']:.2f} ± {100 * each['accuracy_std']:.2f}",
                    *times,
                    f"{dense['step_ms'] / each['step_ms']:.2f}x",
                    f"{total / 1e6:.2f} MB ({total / whole:.3f}x)",
                ]
            )
        head = ["network", "density", "test accuracy %", "forward ms", "backward ms", "update ms"]
        parts.append(
            markdown([*head, "step speed-up", "weights, indices, optimiser"], body)
            + f"\n\nMean of {len(dense['seeds'])} seeds; {machine}, torch {dense['torch']}."
        )
    return "\n\n".join(parts)


def never_slower(results: Path) -> str:
    """``format="auto"`` over all cases of the suite: a sentence, and the ten worst."""
    parts = []
    rows = newest("never_slower", results)
    for machine in sorted({row["device"] for row in rows}):
        own = [row for row in rows if row["device"] == machine]
        worst = sorted(own, key=lambda row: row["speedup_over_dense"])[:10]
        body = [
            [
                f"{row['op']} {row['shape']}, {row['pass'].replace('_', ' + ')}",
                str(row["batch"]),
                f"{row['density']:g}",
                f"{1e3 * row['dense_ms']:.0f}",
                f"{1e3 * row['p50_ms']:.0f}",
                f"{row['speedup_over_dense']:.2f}x" + (" lost" if row["lost"] else ""),
            ]
            for row in worst
        ]
        middle = statistics.median(row["speedup_over_dense"] for row in own)
        head = ["the ten worst", "batch", "density", "dense us", "sparse us", "speed-up"]
        parts.append(
            f"{len(own)} cases: median {middle:.2f}x, {sum(row['lost'] for row in own)} lost.\n\n"
            + markdown(head, body)
            + f"\n\n{machine}, float32, torch {own[0]['torch']}, commit `{own[0]['commit']}`."
        )
    return "\n\n".join(parts)


def memory(results: Path) -> str:
    """Bytes that a training run keeps, over dense: one row a network and format."""
    parts = []
    rows = newest("memory", results)
    if rows:
        # Bytes are the same on every machine.
        own = [row for row in rows if row["device"] == rows[-1]["device"]]
        densities = sorted({row["density"] for row in own}, reverse=True)
        ratios = {(row["op"], row["variant"], row["density"]): row["of_dense"] for row in own}
        body = [
            [f"{op}, {variant}", *(f"{ratios[op, variant, d]:.3f}x" for d in densities)]
            for op, variant in dict.fromkeys((row["op"], row["variant"]) for row in own)
        ]
        heading = [f"density {d:.2f}" for d in densities]
        parts.append(
            markdown(["bytes over dense", *heading], body)
            + f"\n\nfloat32, torch {own[0]['torch']}, commit `{own[0]['commit']}`."
        )
    return "\n\n".join(parts)


def peak_share(results: Path) -> str:
    """What the forward kernels reach at density 0.20, dense ones too, and the ceilings measured
    before them."""
    parts = []
    for suite in ("linear", "conv2d"):
        rows = [row for row in newest(suite, results) if row["pass"] == "forward"]
        runs = {(row["device"], row["date"]) for row in rows}
        for ceiling in clean_rows("ceilings", results):
            run = (ceiling["device"], ceiling["date"])
            if ceiling["before"] != suite or run not in runs:
                continue
            own = [r for r in rows if (r["device"], r["date"]) == run and r["density"] == 0.2]
            peak = ceiling["fma_from_l1_gflops"]
            body = [
                [
                    " x ".join(map(str, row["shape"])) if suite == "linear" else row["shape"],
                    *_reached(row["useful_gflops"], peak),
                    *_reached(_best_dense(own, row["shape"]), peak),
                ]
                for row in own
                if row["variant"] == "sparsekern_csr"
            ]
            head = [f"{suite}, forward at 0.20", "GFLOP/s", "of the peak", "dense", "of the peak"]
            if body:
                parts.append(
                    markdown(head, body)
                    + f"\n\n{ceiling['device']}: multiply-add {ceiling['fma_gflops']:.0f} GFLOP/s "
                    f"from registers, {peak:.0f} with an operand from L1; copy "
                    f"{ceiling['copy_gbps']:.0f} GB/s; commit `{ceiling['commit']}`."
                )
    return "\n\n".join(parts)


def _best_dense(rows: list[Row], shape: Any) -> float:
    names = ("dense", "dense_nchw", "dense_channels_last")
    own = [row for row in rows if row["shape"] == shape and row["variant"] in names]
    return max((float(row["useful_gflops"]) for row in own), default=math.nan)


def _reached(gflops: float, peak: float) -> tuple[str, str]:
    return f"{gflops:.0f}", f"{100 * gflops / peak:.0f} %"
