"""Sizes of the table of panel starts, without Triton: the CPU kernels walk by it."""

from __future__ import annotations

from dataclasses import dataclass

FORMAT = 2


def _ceil_div(a: int, b: int) -> int:
    return (a + b - 1) // b


@dataclass(frozen=True)
class PanelGeometry:
    """Sizes that follow from shape and count alone (csrc/cpu/csr/panel_starts.h holds the same)."""

    rows: int
    cols: int
    nnz: int

    @property
    def panels(self) -> int:
        wanted = 16 * self.rows * self.cols // self.nnz if self.nnz > 0 else 1024
        return _ceil_div(self.cols, min(max(wanted, 96), 1024) // 32 * 32)

    @property
    def panel(self) -> int:
        return _ceil_div(self.cols, self.panels) if self.panels > 0 else 0

    @property
    def tail(self) -> int:
        return (self.panels + 1) * self.rows

    @property
    def numel(self) -> int:
        return self.tail + 4
