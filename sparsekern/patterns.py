"""What a mask may look like.

A pattern says which masks are legal; a format (:mod:`sparsekern.formats`) says how the kept weights
are stored. Every pattern sees a weight as a matrix ``[O, fan_in]``.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Pattern:
    """Base of all patterns."""


@dataclass(frozen=True)
class Unstructured(Pattern):
    """Any mask."""


UNSTRUCTURED = Unstructured()
