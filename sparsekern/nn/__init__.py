"""Drop-in sparse modules, and conversion of models to and from them."""

from sparsekern.nn.convert import densify, sparse_layers, to_sparse
from sparsekern.nn.explain import explain
from sparsekern.nn.linear import SparseLinear
from sparsekern.nn.tune import tune

__all__ = ["SparseLinear", "densify", "explain", "sparse_layers", "to_sparse", "tune"]
