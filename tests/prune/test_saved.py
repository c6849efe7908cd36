"""A Pruner's state: incomplete and wrong ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from sparsekern.prune import Pruner, Static


@pytest.fixture
def pruner() -> Pruner:
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return Pruner(model, optimizer, Static(density=0.2), total_steps=10)


@pytest.mark.parametrize("key", ["method", "steps", "total_steps", "due", "generator", "memory"])
def test_missing_and_ill_typed_keys(pruner: Pruner, key: str) -> None:
    state = pruner.state_dict()
    with pytest.raises(ValueError, match=f"Expected a checkpoint with {key} of type .* Got list"):
        pruner.load_state_dict({**state, key: []})
    del state[key]
    with pytest.raises(ValueError, match=f"Expected a checkpoint with {key} of .* Got nothing"):
        pruner.load_state_dict(state)


@pytest.mark.parametrize("state", [None, 5, [], "x"])
def test_no_mapping(pruner: Pruner, state: Any) -> None:
    with pytest.raises(TypeError, match="Expected state to be the state_dict of a Pruner. Got"):
        pruner.load_state_dict(state)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"memory": {"0": {}}}, "Expected a checkpoint of the layers 0, 1. Got 0"),
        ({"memory": {}}, "Expected a checkpoint of the layers 0, 1. Got none"),
        (
            {"generator": torch.zeros(3)},
            r"with the state of a torch\.Generator. Got another tensor",
        ),
        ({"steps": True}, "Expected a checkpoint with steps of type int. Got bool"),
    ],
)
def test_wrong_content_changes_nothing(
    pruner: Pruner, changes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        pruner.load_state_dict({**pruner.state_dict(), "steps": 7, **changes})
    assert pruner.steps == 0
