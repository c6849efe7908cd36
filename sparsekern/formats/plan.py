"""What each layer runs: the fixed rule for when nothing was measured, and ``Plan`` for after that.

Formats, and with them shapes and memory, follow from the rule; a plan chooses among the kernels
that can multiply by a weight as it is stored.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from sparsekern.formats.base import SparseFormat
from sparsekern.ops import bsr
from sparsekern.patterns import UNSTRUCTURED, Block, FanIn, Pattern

# PERF: densities up to which csr beats a dense layer forward + backward from batch 32 on, by 1.3 to
# 2.5 times at 0.4 on the CPU (Zen 5), and up to which training with momentum takes less memory. A
# batch of one loses from 0.15 on where the dense weight fits a cache (bench/never_slower.py).
# Shapes, and so memory, follow from this rule, never from a clock. No GPU has confirmed its number.
CSR_DENSITY = {"cpu": 0.4, "cuda": 0.01}
# PERF: densities up to which a dense master trains faster on the csr kernels, values gathered and
# gradients scattered: 1.0 to 2 times as fast at 0.5 from batch 32 on, but for a few thousand
# weights, where calls cost more than products (64 to 64: half as fast; bench/never_slower.py, Zen
# 5). The forward pass alone takes the dense weight, which is at hand (forward_alone_is_dense).
KERNEL_DENSITY = {"cpu": 0.55, "cuda": 0.01}
SINGLE_DENSITY = 0.15
# PERF: the same for blocks of at least LEAST_BLOCK weights; blocks of 16 x 16 at density 0.5 take
# about a third of a dense layer's time, forward + backward (Zen 5). On CUDA, where no GPU has
# confirmed it, the sides of a block decide as well (bsr.triton_density).
BSR_DENSITY = {"cpu": 0.5, "cuda": 0.25}
LEAST_BLOCK = 16


def csr_pays(density: float, device: torch.device) -> bool:
    """Whether csr kernels are the rule's choice at this density on this kind of device."""
    return density <= CSR_DENSITY.get(device.type, 0.0)


def bsr_pays(density: float, device: torch.device, pattern: Pattern) -> bool:
    """Whether masks are made of blocks, and these large and few enough for the bsr kernels."""
    if not isinstance(pattern, Block):
        return False
    pays = pattern.numel >= LEAST_BLOCK
    if device.type == "cuda":
        pays = density <= bsr.triton_density(pattern.shape)
    return pays and density <= BSR_DENSITY.get(device.type, 0.0)


def choose_format(
    density: float,
    device: torch.device,
    master: str = "compact",
    pattern: Pattern = UNSTRUCTURED,
) -> str:
    """Name of the format that ``format="auto"`` means: ``bsr`` for a pattern of blocks,
    ``condensed`` for one of constant fan-in and ``csr`` for others where they pay, else ``masked``.

    Methods that need a dense master (``master="dense"``) always get ``masked``, whose kernel
    follows the same rule (:func:`choose_kernel`).
    """
    if master == "dense":
        return "masked"
    if bsr_pays(density, device, pattern):
        return "bsr"
    if not csr_pays(density, device):
        return "masked"
    return "condensed" if isinstance(pattern, FanIn) else "csr"


def choose_kernel(density: float, device: torch.device) -> str:
    """What a dense master runs: ``csr`` or ``dense``."""
    return "csr" if density <= KERNEL_DENSITY.get(device.type, 0.0) else "dense"


def forward_alone_is_dense(density: float, batch: int, *, convolution: bool = False) -> bool:
    """Whether a dense master that trains on csr kernels multiplies by its dense weight all the
    same where there are no gradients: from density 0.15 on for a batch of one, from 0.4 on for
    batches below 32 and for convolutions.

    PERF: at density 0.5 the csr kernels take 1.3 to 1.6 times as long as dense for 8 rows, 0.6 to
    0.7 times for 64; 3x3 convolutions 0.8 to 1.8 times (Zen 5, 2 threads).
    """
    if density > CSR_DENSITY["cpu"]:
        return convolution or batch < 32
    return density > SINGLE_DENSITY and batch <= 1


def rule_in_words(format: SparseFormat) -> str:
    """Why a format runs what it runs when nothing was measured: the rule, or what was asked for."""
    device = format.parameter.device
    if format.master == "dense":
        limit = KERNEL_DENSITY.get(device.type, 0.0)
        text = f"rule: csr kernels up to density {limit:g} on {device.type}"
        if CSR_DENSITY.get(device.type, 0.0) < format.density <= limit:
            text += ", dense for small batches without gradients"
        text += "; the master is dense"
    else:
        limits = BSR_DENSITY if format.name == "bsr" else CSR_DENSITY
        name = format.name
        text = f"rule: {name} up to density {limits.get(device.type, 0.0):g} on {device.type}"
    if format.variant != "auto":
        return f"asked for; {text}"
    if format.name != choose_format(format.density, device, format.master, format.pattern):
        return f"format {format.name} was asked for; {text}"
    return text


PLAN_VERSION = 1
DENSE_LAYER = "dense_layer"  # beside the variants: the plain torch layer of the same shape


@dataclass(frozen=True)
class LayerPlan:
    """What one sparse weight runs, and what was measured.

    Attributes:
        names: of the layers that use the weight (several: tied).
        shape, format, master, density: of the weight when it was measured.
        variant: what runs; "auto" is the fixed rule.
        why: one line for people.
        inputs: what the layers were called with, as "float32[128, 784]".
        forward_ms, forward_backward_ms: milliseconds by variant, and of a plain torch layer
            (:data:`DENSE_LAYER`), summed over the calls of one pass of the model; empty if not
            measured.
    """

    names: tuple[str, ...]
    shape: tuple[int, ...]
    format: str
    master: str
    density: float
    variant: str = "auto"
    why: str = ""
    inputs: tuple[str, ...] = ()
    forward_ms: dict[str, float] = field(default_factory=dict)
    forward_backward_ms: dict[str, float] = field(default_factory=dict)

    def holds_at(self, density: float) -> bool:
        """Whether times measured at this plan's density say something about ``density``."""
        return rounded_density(density) == rounded_density(self.density)

    @property
    def times_ms(self) -> dict[str, float]:
        """Of a training step where it was measured, else of the forward pass."""
        return self.forward_backward_ms or self.forward_ms

    @classmethod
    def from_dict(cls, values: Any) -> LayerPlan:
        """The inverse of ``dataclasses.asdict``, from JSON. Raises ValueError with one sentence."""
        known = {each.name for each in fields(cls)}
        if not isinstance(values, dict) or set(values) != known:
            got = sorted(values) if isinstance(values, dict) else type(values).__name__
            raise ValueError(
                f"Expected each layer of a plan to have {', '.join(sorted(known))}. Got {got}."
            )
        for key, (right, meaning) in _CHECKS.items():
            if not right(values[key]):
                raise ValueError(
                    f"Expected {key} of a planned layer to be {meaning}. Got {values[key]!r}."
                )
        listed = {key: tuple(values[key]) for key in ("names", "shape", "inputs")}
        return cls(**{**values, **listed})


def _are(kind: type) -> Callable[[Any], bool]:
    def right(value: Any) -> bool:
        return isinstance(value, (list, tuple)) and all(type(each) is kind for each in value)

    return right


def _is_times(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(name, str) and type(ms) in (int, float) and math.isfinite(ms) and ms >= 0
        for name, ms in value.items()
    )


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_density(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value <= 1


_CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "names": (lambda value: _are(str)(value) and len(value) > 0, "a list of names"),
    "shape": (_are(int), "a list of integers"),
    "inputs": (_are(str), "a list of text"),
    **{key: (_is_text, "text") for key in ("format", "master", "variant", "why")},
    "density": (_is_density, "a number in [0, 1]"),
    **{
        key: (_is_times, "milliseconds by variant") for key in ("forward_ms", "forward_backward_ms")
    },
}


@dataclass(frozen=True)
class Plan:
    """Which variant each sparse layer runs: made by :func:`sparsekern.tune`, saved with a model.

    A plan decides no shape and no format: those follow from written rules. Applying a plan is
    deterministic, so a run that is resumed with its plan gives the bits of the first one.

    Attributes:
        layers: one entry a sparse weight.
        training: whether variants were chosen by forward + backward, or by the forward pass alone.
        machine: where it was measured (device, threads, isa, torch, sparsekern).
    """

    layers: tuple[LayerPlan, ...]
    training: bool
    machine: dict[str, Any] = field(default_factory=dict)

    def __iter__(self) -> Iterator[LayerPlan]:
        return iter(self.layers)

    def __getitem__(self, name: str) -> LayerPlan:
        for layer in self.layers:
            if name in layer.names:
                return layer
        raise KeyError(name)

    def __str__(self) -> str:
        lines = [f"{', '.join(each.names)}: {each.variant} ({each.why})" for each in self.layers]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        values: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return {"version": PLAN_VERSION, **values}

    @classmethod
    def from_dict(cls, values: Any) -> Plan:
        """The plan of :meth:`to_dict`. Raises ValueError with one sentence for anything else."""
        if not isinstance(values, dict) or values.get("version") != PLAN_VERSION:
            got = values.get("version") if isinstance(values, dict) else type(values).__name__
            raise ValueError(f"Expected a plan of version {PLAN_VERSION}. Got {got!r}.")
        kinds = {"training": bool, "machine": dict, "layers": list}
        for key, kind in kinds.items():
            if not isinstance(values.get(key), kind):
                raise ValueError(
                    f"Expected {key} of a plan to be a {kind.__name__}. Got {values.get(key)!r}."
                )
        layers = tuple(LayerPlan.from_dict(each) for each in values["layers"])
        return cls(layers, values["training"], dict(values["machine"]))

    def to_json(self) -> str:
        """The plan as text, for a file."""
        return json.dumps(self.to_dict(), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """The plan of :meth:`to_json`. Raises ValueError with one sentence for anything else."""
        try:
            values = json.loads(text)
        except ValueError as error:
            raise ValueError(f"Expected a plan to be JSON. Got: {error}.") from None
        return cls.from_dict(values)

    def validate(self, model: nn.Module) -> None:
        """Raises ValueError that names the layer, if this is the plan of another model."""
        owners = sparse_weights(model)
        for layer in self.layers:
            matching = [own for names, own in owners if names == layer.names]
            if not matching:
                raise ValueError(_another_model(layer, owners))
            own = matching[0]
            if (own.shape, own.name) != (layer.shape, layer.format):
                raise ValueError(
                    f"Expected {layer.names[0]} to have shape {layer.shape} and format "
                    f"{layer.format!r}, as the plan says. Got {own.shape} and {own.name!r}."
                )
            own._check_variant(layer.variant, own.known_variants)
        planned = {layer.names for layer in self.layers}
        for names, _ in owners:
            if names not in planned:
                raise ValueError(
                    f"Expected a plan of this model. Got one that leaves out {names[0]}."
                )

    def apply(self, model: nn.Module) -> None:
        """Sets the variant of every layer; a layer whose density has changed since follows the
        rule, until its density is that of the plan again.

        Raises:
            ValueError: the plan of another model; nothing is changed.
        """
        self.validate(model)
        owners = dict(sparse_weights(model))
        for layer in self.layers:
            owners[layer.names].take_measured(layer)


def _another_model(layer: LayerPlan, owners: list[tuple[tuple[str, ...], SparseFormat]]) -> str:
    name = layer.names[0]
    for names, _ in owners:
        if name in names:
            return (
                f"Expected {', '.join(layer.names)} to share one weight, as the plan says. "
                f"Got {', '.join(names)}."
            )
    return f"Expected a plan of this model. Got one with {name}, which is no sparse layer of it."


def sparse_weights(model: nn.Module) -> list[tuple[tuple[str, ...], SparseFormat]]:
    """Every format of a model once, with the names of the layers that hold it as ``format``.

    Names are those inside of wrappers (DistributedDataParallel, torch.compile).
    """
    found: dict[int, tuple[list[str], SparseFormat]] = {}
    for name, module in unwrapped(model).named_modules(remove_duplicate=False):
        if isinstance(module, SparseFormat):
            layer = name.rpartition(".")[0]
            found.setdefault(id(module), ([], module))[0].append(layer)
    return [(tuple(names), format) for names, format in found.values()]


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside of DistributedDataParallel and torch.compile."""
    while True:
        if isinstance(model, DistributedDataParallel):
            model = model.module
        elif isinstance(getattr(model, "_orig_mod", None), nn.Module):
            model = model._orig_mod  # type: ignore[assignment]
        else:
            return model


def rounded_density(density: float) -> float:
    """Two significant digits: as finely as times depend on it."""
    return float(f"{density:.2g}")
