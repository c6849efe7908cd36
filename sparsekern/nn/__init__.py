"""Drop-in sparse modules, and conversion of models to and from them."""

from sparsekern.nn.channels import ChannelReport, remove_channels
from sparsekern.nn.checkpoint import LoadReport, load, save
from sparsekern.nn.conv import SparseConv2d
from sparsekern.nn.convert import densify, sparse_layers, to_sparse
from sparsekern.nn.distributed import ddp_ignore
from sparsekern.nn.explain import explain
from sparsekern.nn.fuse import FusedSequential, fuse_activations, unfuse_activations
from sparsekern.nn.layer import SparseLayer
from sparsekern.nn.linear import SparseLinear
from sparsekern.nn.transposed import SparseTransposedLinear
from sparsekern.nn.tune import tune

__all__ = [
    "ChannelReport",
    "FusedSequential",
    "LoadReport",
    "SparseConv2d",
    "SparseLayer",
    "SparseLinear",
    "SparseTransposedLinear",
    "ddp_ignore",
    "densify",
    "explain",
    "fuse_activations",
    "load",
    "remove_channels",
    "save",
    "sparse_layers",
    "to_sparse",
    "tune",
    "unfuse_activations",
]
