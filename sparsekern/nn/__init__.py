"""Drop-in sparse modules, and conversion of models to and from them."""

from sparsekern.nn.convert import densify, sparse_layers, to_sparse
from sparsekern.nn.linear import SparseLinear

__all__ = ["SparseLinear", "densify", "sparse_layers", "to_sparse"]
