"""sparsekern: pruning masks that really save time and memory, in training as well as inference.

``import sparsekern as sk`` needs torch and numpy alone and never fails because native code is
absent; the trainer and the command line import the rest of their dependencies themselves.
"""

from sparsekern import formats, nn, ops, optim, patterns, prune
from sparsekern.formats import Plan
from sparsekern.nn import densify, explain, load, save, tune
from sparsekern.prune import Pruner, sparsify

__version__ = "0.1.0"

__all__ = [
    "Plan",
    "Pruner",
    "__version__",
    "densify",
    "explain",
    "formats",
    "load",
    "nn",
    "ops",
    "optim",
    "patterns",
    "prune",
    "save",
    "sparsify",
    "tune",
]
