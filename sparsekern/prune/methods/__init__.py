"""One paper per file; importing this package registers them."""

from sparsekern.prune.methods.gmp import GMP
from sparsekern.prune.methods.rigl import RigL
from sparsekern.prune.methods.set import SET
from sparsekern.prune.methods.static import Static

__all__ = ["GMP", "SET", "RigL", "Static"]
