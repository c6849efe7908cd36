"""Optimisers that look at a weight as a matrix cannot work on the one-dimensional values of a
compact format; they are refused by name, with a sentence, instead of failing or of silently doing
something else."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn
from torch.optim import Optimizer

from sparsekern._registry import Registry
from sparsekern.formats import FORMATS, SparseFormat, choose_format
from sparsekern.patterns import UNSTRUCTURED, Pattern

# Class name (or that of a base class) -> what it does with matrices. Add your own:
# ``sk.optim.MATRIX_OPTIMIZERS.add("MyOptimizer", "factors the second moment")``.
MATRIX_OPTIMIZERS: Registry[str] = Registry("matrix optimizer")

for _name, _reason in (
    ("Muon", "orthogonalises the momentum of matrices"),
    ("MuonWithAuxAdam", "orthogonalises the momentum of matrices"),
    ("SingleDeviceMuon", "orthogonalises the momentum of matrices"),
    ("SingleDeviceMuonWithAuxAdam", "orthogonalises the momentum of matrices"),
    ("Dion", "orthogonalises the momentum of matrices"),
    ("Shampoo", "preconditions both sides of matrices"),
    ("DistributedShampoo", "preconditions both sides of matrices"),
    ("SOAP", "preconditions both sides of matrices"),
    ("KFAC", "preconditions both sides of matrices"),
    ("Adafactor", "keeps the second moment of matrices as rows and columns"),
    ("CAME", "keeps the second moment of matrices as rows and columns"),
    ("GaLoreAdamW", "projects the gradients of matrices"),
    ("GaLoreAdafactor", "projects the gradients of matrices"),
    # Its formula fits any shape, but its implementations leave vectors out as biases.
    ("LARS", "adapts the learning rate of matrices, leaving vectors out"),
):
    MATRIX_OPTIMIZERS.add(_name, _reason)


def check_optimizer(optimizer: Optimizer, model: nn.Module) -> None:
    """Raises NotImplementedError if the optimiser needs matrices and holds compact values of the
    model. Dense masters (format "masked") work with every optimiser; so do weights that another
    optimiser holds. A Pruner asks this when it is built.
    """
    compact = {
        name.removesuffix(".format"): module.parameter
        for name, module in model.named_modules()
        if isinstance(module, SparseFormat) and module.master == "compact"
    }
    check_compact(optimizer, compact)


def check_compact(optimizer: Optimizer, compact: Mapping[str, nn.Parameter]) -> None:
    """The check of :func:`check_optimizer` for parameters that are or become compact, by name."""
    known = [
        kind.__name__ for kind in type(optimizer).__mro__ if kind.__name__ in MATRIX_OPTIMIZERS
    ]
    if not known:
        return
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    for name, parameter in compact.items():
        if id(parameter) in held:
            raise NotImplementedError(
                f"Expected an element-wise optimizer for the compact values of {name!r}. Got "
                f"{type(optimizer).__name__}, which {MATRIX_OPTIMIZERS[known[0]]}: use dense "
                "masters (format='masked'), or an optimizer of their own for these weights."
            )


def check_conversion(
    optimizer: Optimizer,
    weights: Mapping[str, tuple[nn.Parameter, int]],
    format: str,
    master: str = "compact",
    pattern: Pattern = UNSTRUCTURED,
) -> None:
    """The check of :func:`check_optimizer` before dense weights become sparse.

    Args:
        optimizer: built over the dense weights.
        weights: each by name, with how many of its elements will be kept.
        format: "auto" or a format's name.
        master: "compact" or "dense", what ``format="auto"`` may choose from.
        pattern: what masks are made of.
    """
    compact = {}
    for name, (weight, kept) in weights.items():
        rule = choose_format(kept / max(weight.numel(), 1), weight.device, master, pattern)
        if FORMATS[rule if format == "auto" else format].master == "compact":
            compact[name] = weight
    check_compact(optimizer, compact)
