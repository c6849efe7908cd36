"""``summary.json``: what a run found out, one entry for each network."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from sparsekern.train.files import write_atomically
from sparsekern.train.machine import versions
from sparsekern.train.metrics import Row
from sparsekern.train.network import NETWORKS, Bytes
from sparsekern.train.recipe import Recipe
from sparsekern.train.run_folder import SUMMARY
from sparsekern.train.timing import StepTime

# What read_summary makes sure of.
SUMMARY_KEYS: dict[str, tuple[type, ...]] = {
    "recipe": (str,),
    "sparse": (dict,),
    "seeds": (list,),
    "versions": (dict,),
    "speedup": (float, int, type(None)),
    "bytes_ratio": (float, int, type(None)),
    "peak_bytes_ratio": (float, int, type(None)),
}
VERSION_KEYS = ("machine", "threads", "torch", "isa")
NUMBERS = (
    "accuracy",
    "accuracy_std",
    "step_ms",
    "forward_ms",
    "backward_ms",
    "update_ms",
    "topology_ms",
    "weight_bytes",
    "index_bytes",
    "state_bytes",
    "density",
    "train_s",
)


def network_summary(
    rows: list[Row], seconds: list[float], time: StepTime, size: Bytes, width: float
) -> dict[str, Any]:
    """What is known of one network.

    Args:
        rows: its last row of every seed.
        seconds: time spent in training steps, of every seed.
        time: of its steps.
        size: of its prunable layers at the end.
        width: factor on the hidden sizes of the recipe's model.
    """
    accuracies = [row["test_accuracy"] for row in rows]
    return {
        "accuracy": fmean(accuracies),
        "accuracy_std": stdev(accuracies) if len(accuracies) > 1 else 0.0,
        "step_ms": time.step_ms,
        "forward_ms": time.forward_ms,
        "backward_ms": time.backward_ms,
        "update_ms": time.update_ms,
        "topology_ms": time.topology_ms,
        "weight_bytes": size.weight,
        "index_bytes": size.index,
        "state_bytes": size.state,
        "density": rows[0]["density"],
        "train_s": fmean(seconds),
        "width": width,
    }


def run_summary(
    recipe: Recipe, networks: dict[str, dict[str, Any]], peak_bytes: int
) -> dict[str, Any]:
    """The whole ``summary.json``.

    Bytes are those of the prunable layers: weights, all indices and layouts, optimiser state, at
    the end of the run. ``peak_bytes_ratio`` has the most that the sparse network held at any time.

    Args:
        recipe: of the run.
        networks: :func:`network_summary` by name.
        peak_bytes: of the sparse network at its largest.
    """
    dense, sparse = networks.get("dense"), networks["sparse"]
    ratios: dict[str, Any] = {"speedup": None, "bytes_ratio": None, "peak_bytes_ratio": None}
    if dense is not None:
        ratios["speedup"] = dense["step_ms"] / sparse["step_ms"]
        ratios["bytes_ratio"] = total_bytes(sparse) / total_bytes(dense)
        ratios["peak_bytes_ratio"] = peak_bytes / total_bytes(dense)
    return {
        "recipe": recipe.name,
        "description": recipe.description,
        **networks,
        **ratios,
        "seeds": [recipe.seed + i for i in range(recipe.seeds)],
        "versions": versions(),
    }


def total_bytes(network: dict[str, Any]) -> int:
    """Weights, indices and optimiser state of one network's summary."""
    total: int = network["weight_bytes"] + network["index_bytes"] + network["state_bytes"]
    return total


def write_summary(summary: dict[str, Any], folder: Path) -> None:
    """Writes ``summary.json``: from now on the run counts as finished."""
    write_atomically(folder / SUMMARY, (json.dumps(summary, indent=2) + "\n").encode())


def read_summary(folder: Path) -> dict[str, Any]:
    """The summary of a finished run.

    Raises:
        ValueError: there is none, or it is damaged.
    """
    path = folder / SUMMARY
    if not path.is_file():
        raise ValueError(f"Expected {folder} to hold a finished run with {SUMMARY}. Got none.")
    try:
        summary: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError):
        raise ValueError(f"Expected {path} to be the summary of a run. Got no JSON.") from None
    missing = _missing_key(summary)
    if missing is not None:
        raise ValueError(
            f"Expected {path} to be the summary of a run. Got one without a usable {missing}."
        )
    return summary


def _missing_key(summary: Any) -> str | None:
    """The first thing that a report needs and the summary does not have."""
    if not isinstance(summary, dict):
        return "mapping"
    for key, kinds in SUMMARY_KEYS.items():
        if key not in summary or not isinstance(summary[key], kinds):
            return key
    for key in VERSION_KEYS:
        if key not in summary["versions"]:
            return f"versions.{key}"
    for name in (name for name in NETWORKS if name in summary):
        for key in NUMBERS:
            each = summary[name]
            if not isinstance(each, dict) or not isinstance(each.get(key), (int, float)):
                return f"{name}.{key}"
    return None


def check_rows(summary: dict[str, Any], rows: list[Row], path: Path) -> None:
    """Raises ValueError unless every network of a summary has metrics."""
    for name in NETWORKS:
        if name in summary and not any(row["network"] == name for row in rows):
            raise ValueError(f"Expected {path} to have rows of {name}. Got none.")
