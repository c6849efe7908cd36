"""Updates: optimiser steps that know the mask, over many tensors at once."""

from sparsekern.ops.update.masked_adamw import masked_adamw_
from sparsekern.ops.update.masked_norm import masked_norm
from sparsekern.ops.update.masked_sgd import masked_sgd_

__all__ = ["masked_adamw_", "masked_norm", "masked_sgd_"]
