"""Methods that decide which weights are kept, and the one loop that runs them."""

from sparsekern.prune.distribution import DISTRIBUTIONS, kept_counts
from sparsekern.prune.method import METHODS, Clock, Layer, Method
from sparsekern.prune.methods import GMP, SET, RigL, Static
from sparsekern.prune.pruner import Pruner
from sparsekern.prune.scores import SCORES
from sparsekern.prune.sparsify import SparsifyReport, sparsify

__all__ = [
    "DISTRIBUTIONS",
    "GMP",
    "METHODS",
    "SCORES",
    "SET",
    "Clock",
    "Layer",
    "Method",
    "Pruner",
    "RigL",
    "SparsifyReport",
    "Static",
    "kept_counts",
    "sparsify",
]
