"""AdamW with the states of kept weights alone: 12 d' + 16 d bytes a float32 weight at density d.

Thread mapping: that of masked_adamw.py, whose kernels run here with a table of ranks.
Tile: groups of eight weights; d' is the fraction of groups with a kept one. States are gathered.
Accumulation: float32; rate and bias corrections in float64, once a tensor, in a small launch.
Alignment: 16 bytes for vectors of weights, see table.py; states are moved one by one.
Contract: sparsekern/ops/update/compact_adamw.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from sparsekern.kernels.update.masked_adamw import launch_adamw

RANK_BLOCK = 512  # as the contract has it


def compact_adamw(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    steps: Sequence[Tensor],
    bits: Sequence[Tensor],
    *more: Any,
    **options: Any,
) -> None:
    """Launches ``update_compact_adamw_``: two kernels for each combination of dtypes."""
    ranks, copies, *numbers = more
    lengths = [each.numel() for each in exp_avgs]
    columns = (bits, params, grads, copies, exp_avgs, exp_avg_sqs, ranks, lengths)
    launch_adamw(columns, steps, RANK_BLOCK, numbers, **options)
