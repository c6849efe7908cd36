"""``state[j] = state[positions[j]]`` in place, zero where ``positions[j]`` is -1.

Thread mapping: one program gathers BLOCK elements into scratch, which is copied back.
Tile: BLOCK elements. Accumulation: none, elements are moved as integers of their size.
Alignment: none asked for; addresses are int64.
Roofline: two reads and two writes of the state; positions mostly rise, so the gather coalesces.
Contract: sparsekern/ops/csr/move.py.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparsekern.kernels.launch import INTERPRETING, launch

BLOCK = 65536 if INTERPRETING else 2048  # the interpreter pays by the program
WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@triton.jit
def move_kernel(p_state, p_positions, p_moved, numel, BLOCK: tl.constexpr):
    first = tl.program_id(0).to(tl.int64) * BLOCK
    o_entry = tl.arange(0, BLOCK)
    m_entry = o_entry < numel - first
    place = tl.load(p_positions + first + o_entry, mask=m_entry, other=-1)
    m_kept = m_entry & (place >= 0) & (place < numel)
    state = tl.load(p_state + place, mask=m_kept, other=0)
    tl.store(p_moved + first + o_entry, state, mask=m_entry)


def move(state: Tensor, positions: Tensor) -> None:
    """Launches ``csr_move_``."""
    words = state.view(WORDS[state.element_size()])
    moved = torch.empty_like(words)
    grid = (triton.cdiv(words.numel(), BLOCK),)
    launch(move_kernel, grid, words, positions.contiguous(), moved, words.numel(), BLOCK=BLOCK)
    words.copy_(moved)
