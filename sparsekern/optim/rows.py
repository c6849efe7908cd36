"""What one call of an update op works on."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from torch import Tensor

MASTER = "master"  # the state that holds the float32 weight of a 16-bit parameter


@dataclass
class Rows:
    """Parameters of one group on one device that have a gradient."""

    params: list[Tensor] = field(default_factory=list)
    contiguous: list[Tensor] = field(default_factory=list)  # themselves, or copies
    grads: list[Tensor] = field(default_factory=list)
    bits: list[Tensor] = field(default_factory=list)
    states: list[dict[str, Any]] = field(default_factory=list)
    weights: list[Tensor] = field(default_factory=list)  # what the op updates
    copies: list[Tensor] = field(default_factory=list)  # what gets them in 16 bits; may be none

    def add(self, param: Tensor, grad: Tensor, bits: Tensor, state: dict[str, Any]) -> None:
        """One parameter more."""
        self.params.append(param)
        self.contiguous.append(param if param.is_contiguous() else param.contiguous())
        self.grads.append(grad if grad.is_contiguous() else grad.contiguous())
        self.bits.append(bits)
        self.states.append(state)

    def part(self, flags: list[bool], flag: bool) -> Rows:
        """The rows whose flag is this one."""
        lists = {
            each.name: [
                v for v, f in zip(getattr(self, each.name), flags, strict=False) if f == flag
            ]
            for each in fields(self)
        }
        return Rows(**lists)

    def choose_weights(self) -> None:
        """Float32 masters where there are some: the parameters become their copies."""
        masters = [state.get(MASTER) for state in self.states]
        self.weights = [
            own if master is None else master
            for own, master in zip(self.contiguous, masters, strict=True)
        ]
        if all(master is None for master in masters):
            return
        self.copies = [
            own.new_empty(0) if master is None else own
            for own, master in zip(self.contiguous, masters, strict=True)
        ]


@dataclass(frozen=True)
class Scalars:
    """Numbers of a step that are on the device of its weights."""

    factor: Tensor | None  # of the gradients
    found_inf: Tensor | None
    rate: Tensor | None  # in place of ``lr``
    lr: float
