"""What torch's own optimisers need to work with sparse weights."""

from sparsekern.optim.groups import param_groups
from sparsekern.optim.matrix import MATRIX_OPTIMIZERS, check_optimizer
from sparsekern.optim.state import move_state, reset_state, state_bytes

__all__ = [
    "MATRIX_OPTIMIZERS",
    "check_optimizer",
    "move_state",
    "param_groups",
    "reset_state",
    "state_bytes",
]
