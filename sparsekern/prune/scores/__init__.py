"""Scores: a number per weight, higher = keep."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sparsekern._registry import Registry
from sparsekern.prune.scores.magnitude import magnitude
from sparsekern.prune.scores.random import random

Score = Callable[[Tensor, torch.Generator | None], Tensor]
SCORES: Registry[Score] = Registry("score")
SCORES.add("magnitude", magnitude)
SCORES.add("random", random)

__all__ = ["SCORES", "Score", "magnitude", "random"]
