"""Updates: optimiser steps that know the mask, over many tensors at once."""

from sparsekern.ops.update.compact_adamw import compact_adamw_, ranks_of_bits
from sparsekern.ops.update.masked_adamw import masked_adamw_
from sparsekern.ops.update.masked_norm import masked_norm
from sparsekern.ops.update.masked_sgd import masked_sgd_

__all__ = ["compact_adamw_", "masked_adamw_", "masked_norm", "masked_sgd_", "ranks_of_bits"]
