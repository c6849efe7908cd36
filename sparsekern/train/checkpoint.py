"""Checkpoints: folders that are complete or not there.

``step-00000420/`` holds ``model.safetensors`` (weights and topology; ``sk.load`` reads it),
``state.pt`` (optimiser, pruner, plan, random numbers) and ``meta.json`` (what it belongs to, the
other files' checksums and its own). It is written under a temporary name, brought to the disk and
renamed; older ones go only then.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sparsekern.formats import Plan
from sparsekern.nn.checkpoint import save
from sparsekern.nn.tensor_file import read_tensors
from sparsekern.train.files import remove_leftovers, write_folder_atomically
from sparsekern.train.network import Network

FORMAT_VERSION = 3
MODEL, STATE, META = "model.safetensors", "state.pt", "meta.json"
META_KEYS: dict[str, tuple[type, ...]] = {
    "epoch": (int,),
    "step": (int,),
    "seconds": (float, int),
    "files": (dict,),
    "sha256": (str,),
}


@dataclass(frozen=True)
class Progress:
    """Where a training stands."""

    epoch: int = 0  # epochs done
    step: int = 0  # optimiser steps done
    seconds: float = 0.0  # time spent in training steps


class Checkpoints:
    """The checkpoints of one network, of which the newest is kept.

    Args:
        folder: where they lie; leftovers of an interrupted write are removed.
        digest: of the recipe; checkpoints of other recipes are refused.
    """

    def __init__(self, folder: Path, digest: str) -> None:
        self.folder = folder
        self.digest = digest
        remove_leftovers(folder)

    def newest(self) -> Path | None:
        """The newest checkpoint."""
        found = sorted(self.folder.glob("step-*"), key=lambda path: (len(path.name), path.name))
        return found[-1] if found else None

    def save(self, network: Network, progress: Progress) -> Path:
        """Writes a checkpoint, then removes the older ones."""
        path = self.folder / f"step-{progress.step:08d}"

        def fill(folder: Path) -> None:
            save(network.model, folder / MODEL)
            torch.save(_state_of(network), folder / STATE)
            meta = {
                "format_version": FORMAT_VERSION,
                **self._owner(network),
                "epoch": progress.epoch,
                "step": progress.step,
                "seconds": progress.seconds,
                "files": {name: _checksum(folder / name) for name in (MODEL, STATE)},
            }
            meta["sha256"] = _digest(meta)
            (folder / META).write_text(json.dumps(meta, indent=2) + "\n", "utf-8")

        write_folder_atomically(path, fill)
        for other in self.folder.glob("step-*"):
            if other != path:
                shutil.rmtree(other)
        return path

    def restore(self, network: Network) -> Progress:
        """Brings a fresh network to where the newest checkpoint was taken, if there is one.

        Raises:
            ValueError: the checkpoint is damaged, cannot be read, is of another version or of
                another recipe; the sentence names the file and what is wrong with it.
        """
        path = self.newest()
        if path is None:
            return Progress()
        try:
            return self._restore(network, path)
        except OSError as error:
            raise ValueError(
                f"Expected {error.filename or path} to be readable. Got: {error.strerror or error}."
            ) from None

    def _restore(self, network: Network, path: Path) -> Progress:
        meta = self._read_meta(path / META, network)
        for name, checksum in meta["files"].items():
            _check_file(path / name, checksum)
        tensors, _ = read_tensors(path / MODEL)
        state = _read_state(path / STATE)
        if state["compacted"]:
            network.compact_like(tensors)
        try:
            network.model.load_state_dict(tensors)
        except RuntimeError as error:
            raise ValueError(
                f"Expected {path / MODEL} to fit the recipe's model. Got: {error}"
            ) from None
        network.optimizer.load_state_dict(state["optimizer"])
        if network.pruner is not None:
            network.pruner.load_state_dict(state["pruner"])
        if state["plan"] is not None:
            network.plan = Plan.from_dict(state["plan"])
            network.plan.apply(network.model)
        network.scaler.load_state_dict(state["scaler"])
        torch.set_rng_state(state["random"])
        if network.device.type == "cuda":
            torch.cuda.set_rng_state(state["device_random"], network.device)
        return Progress(meta["epoch"], meta["step"], meta["seconds"])

    def _owner(self, network: Network) -> dict[str, Any]:
        """What a checkpoint must belong to."""
        return {
            "recipe": self.digest,
            "network": network.name,
            "seed": network.seed,
            "width": network.width,
        }

    def _read_meta(self, path: Path, network: Network) -> dict[str, Any]:
        try:
            meta: dict[str, Any] = json.loads(path.read_text("utf-8"))
        except FileNotFoundError:
            raise ValueError(f"Expected a checkpoint with {path}. Got no such file.") from None
        except (ValueError, RecursionError):
            raise ValueError(f"Expected {path} to be JSON. Got something else.") from None
        version = meta.get("format_version") if isinstance(meta, dict) else None
        if version != FORMAT_VERSION:
            raise ValueError(
                f"Expected {path} to have format_version {FORMAT_VERSION}. Got {version!r}."
            )
        _check_meta(meta, path)
        for key, own in self._owner(network).items():
            if meta.get(key) != own:
                raise ValueError(
                    f"Expected {path} to be of {key} {own!r}. Got {meta.get(key)!r}: the "
                    "checkpoint belongs to another training."
                )
        return meta


def _state_of(network: Network) -> dict[str, Any]:
    pruner, device = network.pruner, network.device
    on_cuda = device.type == "cuda"
    return {
        "optimizer": network.optimizer.state_dict(),
        "pruner": None if pruner is None else pruner.state_dict(),
        "compacted": network.compacted,
        "plan": None if network.plan is None else network.plan.to_dict(),
        "scaler": network.scaler.state_dict(),
        "random": torch.get_rng_state(),
        "device_random": torch.cuda.get_rng_state(device) if on_cuda else None,
    }


def _read_state(path: Path) -> dict[str, Any]:
    try:
        # Optimisers bring their state to the device of the weights themselves.
        state: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # torch.load raises whatever its parts raise
        reason = str(error).split("\n")[0]
        raise ValueError(f"Expected {path} to be a file of torch.save. Got: {reason}") from None
    return state


def _digest(meta: dict[str, Any]) -> str:
    """Checksum of what ``meta.json`` says besides the checksum itself."""
    content = {key: value for key, value in meta.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _check_meta(meta: dict[str, Any], path: Path) -> None:
    """Raises ValueError unless ``meta.json`` holds what was written."""
    for key, kinds in META_KEYS.items():
        value = meta.get(key)
        if not isinstance(value, kinds) or isinstance(value, bool):
            raise ValueError(
                f"Expected {path} to have {key} of type {kinds[0].__name__}. Got {value!r}: the "
                "file is damaged."
            )
    if set(meta["files"]) != {MODEL, STATE}:
        raise ValueError(
            f"Expected {path} to have checksums of {MODEL} and {STATE}. "
            f"Got {', '.join(sorted(meta['files'])) or 'none'}: the file is damaged."
        )
    if meta["sha256"] != _digest(meta):
        raise ValueError(
            f"Expected {path} to have the checksum that it says. Got another: the file is damaged."
        )


def _checksum(path: Path) -> dict[str, Any]:
    content = path.read_bytes()
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _check_file(path: Path, expected: dict[str, Any]) -> None:
    """Raises ValueError unless the file is the one that was written."""
    if not path.is_file():
        raise ValueError(f"Expected a checkpoint with {path}. Got no such file.")
    size = path.stat().st_size
    if size != expected["bytes"]:
        raise ValueError(
            f"Expected {path} to have {expected['bytes']} bytes. Got {size}: the file is damaged."
        )
    if _checksum(path) != expected:
        raise ValueError(
            f"Expected {path} to have the checksum that meta.json says. "
            "Got another: the file is damaged."
        )
