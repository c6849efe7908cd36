"""Masked optimisers, and what torch's own need to work with sparse weights."""

from sparsekern.optim.groups import param_groups
from sparsekern.optim.masked import MaskedOptimizer
from sparsekern.optim.masked_adamw import MaskedAdamW
from sparsekern.optim.masked_sgd import MaskedSGD
from sparsekern.optim.matrix import MATRIX_OPTIMIZERS, check_optimizer
from sparsekern.optim.state import move_state, reset_state, state_bytes

__all__ = [
    "MATRIX_OPTIMIZERS",
    "MaskedAdamW",
    "MaskedOptimizer",
    "MaskedSGD",
    "check_optimizer",
    "move_state",
    "param_groups",
    "reset_state",
    "state_bytes",
]
