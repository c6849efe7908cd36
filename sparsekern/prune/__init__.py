"""Methods that decide which weights are kept, and the one loop that runs them."""

from typing import TYPE_CHECKING, Any

from sparsekern.prune import methods
from sparsekern.prune.distribution import DISTRIBUTIONS, kept_counts
from sparsekern.prune.method import METHODS, Clock, Layer, Method
from sparsekern.prune.methods import *  # noqa: F403  every registered method by its class name
from sparsekern.prune.pruner import Pruner
from sparsekern.prune.scores import SCORES
from sparsekern.prune.sparsify import SparsifyReport, sparsify

__all__ = [
    "DISTRIBUTIONS",
    "METHODS",
    "SCORES",
    "Clock",
    "Layer",
    "Method",
    "Pruner",
    "SparsifyReport",
    "kept_counts",
    "sparsify",
    *methods.__all__,
]

if TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """The classes of methods, which are found by importing their files."""
