"""Optimiser state of kept weights alone: where it is, and how it follows a change of the mask."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sparsekern.ops import mask as mask_ops
from sparsekern.ops import update

KEPT = "kept"  # the state that says which weights the others are of: bits, as mask.pack_bits


class CompactStates:
    """Makes states compact, or dense again, and keeps the ranks of the present masks."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names
        self._ranks: dict[Tensor, tuple[Tensor, int, Tensor]] = {}

    def fit(self, parameter: Tensor, bits: Tensor, state: dict[str, Any], compact: bool) -> None:
        """Gives the states the form that is asked for and the mask of now. Weights that stay kept
        keep their state, others start at zero. Waits for the device where the mask is new."""
        if not compact or bits.numel() == 0:
            self.expand(parameter, state)
            return
        seen = self._ranks.get(parameter)
        if seen and seen[0] is bits and seen[1] == bits._version and KEPT in state:
            return
        self.expand(parameter, state)
        kept = mask_ops.unpack_bits(bits, tuple(parameter.shape))
        places = kept.flatten().nonzero().squeeze(1)
        wide = torch.float64 if parameter.dtype == torch.float64 else torch.float32
        for name in self.names:
            if state.get(name) is not None:
                state[name] = state[name].flatten()[places]
            else:
                state[name] = torch.zeros(len(places), dtype=wide, device=parameter.device)
        state[KEPT] = bits.clone()
        ranks = update.ranks_of_bits(bits, parameter.numel())
        self._ranks[parameter] = (bits, bits._version, ranks)

    def ranks(self, parameter: Tensor) -> Tensor:
        """Those of the mask that :meth:`fit` was last given."""
        return self._ranks[parameter][2]

    def expand(self, parameter: Tensor, state: dict[str, Any]) -> None:
        """Makes the states dense; zero where there were none. Those of a parameter that has become
        another one since, as when a dense master becomes compact values, are forgotten."""
        if KEPT not in state:
            return
        bits = state.pop(KEPT)
        fits = bits.numel() == (parameter.numel() + 7) // 8
        kept = mask_ops.unpack_bits(bits, tuple(parameter.shape)) if fits else None
        for name in self.names:
            value = state.pop(name, None)
            if kept is not None and value is not None:
                dense = torch.zeros(parameter.shape, dtype=value.dtype, device=value.device)
                state[name] = dense.masked_scatter_(kept, value)
