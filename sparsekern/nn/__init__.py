"""Drop-in sparse modules, and conversion of models to and from them."""

from sparsekern.nn.checkpoint import LoadReport, load, save
from sparsekern.nn.convert import densify, sparse_layers, to_sparse
from sparsekern.nn.linear import SparseLinear
from sparsekern.nn.transposed import SparseTransposedLinear

__all__ = [
    "LoadReport",
    "SparseLinear",
    "SparseTransposedLinear",
    "densify",
    "load",
    "save",
    "sparse_layers",
    "to_sparse",
]
