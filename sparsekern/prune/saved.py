"""What a Pruner's state_dict has to hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

KINDS: dict[str, type] = {
    "method": str,
    "steps": int,
    "total_steps": int,
    "due": bool,
    "generator": Tensor,
    "memory": dict,
}


def check_state(state: Any, own: Mapping[str, Any], layers: Sequence[str]) -> None:
    """Raises unless ``state`` is that of a Pruner with the values ``own`` and these layers.

    Raises:
        TypeError: not a mapping.
        ValueError: something is missing, of another type, of another run or of other layers.
    """
    if not isinstance(state, Mapping):
        raise TypeError(
            f"Expected state to be the state_dict of a Pruner. Got {type(state).__name__}."
        )
    for key, kind in KINDS.items():
        value = state.get(key)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise ValueError(
                f"Expected a checkpoint with {key} of type {kind.__name__}. Got "
                f"{type(value).__name__ if key in state else 'nothing'}."
            )
    for key, wanted in own.items():
        if state[key] != wanted:
            raise ValueError(f"Expected a checkpoint with {key} {wanted!r}. Got {state[key]!r}.")
    if set(state["memory"]) != set(layers):
        raise ValueError(
            f"Expected a checkpoint of the layers {', '.join(layers) or 'none'}. "
            f"Got {', '.join(map(str, state['memory'])) or 'none'}."
        )
    try:
        torch.Generator().set_state(state["generator"])
    except (RuntimeError, TypeError):
        raise ValueError(
            "Expected a checkpoint with the state of a torch.Generator. Got another tensor."
        ) from None
