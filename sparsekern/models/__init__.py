"""Small bundled networks. They are plain dense torch modules; a Pruner makes them sparse."""

from sparsekern.models.mlp import MLP, mlp
from sparsekern.models.model import MODELS, Model

__all__ = ["MLP", "MODELS", "Model", "mlp"]
