"""``sk.tune``: measures what each layer can run, and chooses the fastest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from sparsekern._extension import native
from sparsekern.formats import LayerPlan, Plan, SparseFormat
from sparsekern.formats.plan import DENSE_LAYER, rounded_density, sparse_weights, unwrapped
from sparsekern.nn.measure import Call, Times, capture, time_layer
from sparsekern.nn.times_cache import TimesCache, cache_folder, device_name

Uses = list[tuple[nn.Module, Call]]  # of one weight in one pass of the model


def tune(model: nn.Module, example: Any, *, training: bool = True, cache: bool = True) -> Plan:
    """Measures the variants of every sparse layer on inputs of the real shapes, and sets the best.

    The model runs once on ``example``, as it stands (training or evaluation mode), to see what its
    layers are called with; then the variants of each layer take turns with a plain torch layer.
    Shapes, formats, weights, gradients, buffers and random numbers stay what they are. This is
    the only place where time decides anything; ``forward`` never measures.

    Args:
        model: with sparse layers: modules that hold a :class:`SparseFormat` as ``format``.
        example: what the model is called with: a tensor, a tuple of arguments or a mapping of named
            ones. Give the batch size that you will use.
        training: choose by forward + backward; False: by the forward pass alone.
        cache: use and keep times on disk, in ``SPARSEKERN_CACHE_DIR`` or else the folder
            ``sparsekern`` of the user's cache folder (``XDG_CACHE_HOME``, ``~/.cache``).

    Returns:
        The plan, applied already. Save it with the model; ``plan.apply(model)`` restores the choice
        without measuring. Layers that the example does not reach keep the fixed rule.

    Several ranks (torch.distributed) must all call it; rank 0 measures, all take its plan.

    Raises:
        TypeError: an example of another kind.
        ValueError: a model without sparse layers.

    >>> model = torch.nn.Sequential(sk.nn.SparseLinear(64, 64, density=0.1), torch.nn.ReLU())
    >>> plan = sk.tune(model, torch.randn(32, 64), cache=False)
    >>> plan["0"].variant in model[0].format.variants
    True
    """
    inner = unwrapped(model)
    weights = sparse_weights(inner)
    if not weights:
        raise ValueError("Expected a model with sparse layers. Got none: call sk.sparsify first.")
    layers = [inner.get_submodule(name) for names, _ in weights for name in names]
    calls = capture(inner, example, list(dict.fromkeys(layers)), training)

    def measured() -> Plan:
        times = LayerTimes(cache, training)
        entries = [_entry(inner, names, format, calls, times) for names, format in weights]
        times.save()
        return Plan(tuple(entries), training, machine(weights[0][1].parameter.device))

    plan = _from_rank_zero(measured)
    plan.apply(inner)
    return plan


class LayerTimes:
    """Measures layers; equal ones once, and none whose times are on disk.

    Args:
        cache: whether to use the disk.
        training: whether forward + backward is wanted too.
    """

    def __init__(self, cache: bool, training: bool) -> None:
        self.training = training
        self._known = TimesCache(cache_folder() if cache else None)

    def of(self, layer: nn.Module, call: Call) -> Times:
        """Milliseconds by pass and variant, see :func:`time_layer`."""
        key = cache_key(layer, call, self.training)
        times = self._known.get(key)
        if times is None:
            times = time_layer(layer, call, self.training)
            self._known.add(key, times)
        return times

    def total(self, uses: Uses) -> Times:
        """The sums over several calls; only variants that can run them all."""
        total: Times = {}
        for layer, call in uses:
            for which, times in self.of(layer, call).items():
                so_far = total.get(which)
                total[which] = (
                    dict(times)
                    if so_far is None
                    else {name: so_far[name] + ms for name, ms in times.items() if name in so_far}
                )
        return total

    def save(self) -> None:
        """Keeps what was measured, if it is to be kept."""
        self._known.save()


def uses_of(model: nn.Module, names: tuple[str, ...], calls: dict[nn.Module, list[Call]]) -> Uses:
    """Every call of the layers of one weight."""
    layers = dict.fromkeys(model.get_submodule(name) for name in names)
    return [(layer, call) for layer in layers for call in calls[layer]]


def _entry(
    model: nn.Module,
    names: tuple[str, ...],
    format: SparseFormat,
    calls: dict[nn.Module, list[Call]],
    times: LayerTimes,
) -> LayerPlan:
    """Measures one weight and chooses."""
    uses = uses_of(model, names, calls)
    total = times.total(uses)
    forward, both = total.get("forward", {}), total.get("forward_backward", {})
    decisive = both or forward
    able = [name for name in format.variants if name in decisive]
    best = min(able, key=lambda name: decisive[name], default="auto")
    return LayerPlan(
        names=names,
        shape=format.shape,
        format=format.name,
        master=format.master,
        density=format.density,
        variant=best,
        why=_why(uses, decisive, best, format.master),
        inputs=tuple(str(call) for _, call in uses),
        forward_ms=forward,
        forward_backward_ms=both,
    )


def _why(uses: Uses, times: dict[str, float], best: str, master: str) -> str:
    if not uses:
        return "not reached by the example: the fixed rule"
    if best == "auto":
        return "no variant runs here: the fixed rule"
    others = {name: ms for name, ms in times.items() if name not in (best, DENSE_LAYER)}
    over = ", ".join(f"{name} {ms:.3g} ms" for name, ms in others.items())
    text = f"measured: {best} {times[best]:.3g} ms" + (f", {over}" if over else "")
    extra = times[best] - times[DENSE_LAYER]
    if extra > 0.02 * times[DENSE_LAYER]:
        reason = ""
        if best == "dense":
            reason = ", for scattering values" if master == "compact" else ", for masking gradients"
        text += f"; {extra:.2g} ms slower than a plain layer{reason}"
    return text


def cache_key(layer: nn.Module, call: Call, training: bool) -> str:
    """Everything that times depend on, as text."""
    device = call.device
    facts = [
        *machine(device).values(),
        f"{type(layer).__name__}({layer.extra_repr()})",
        *(f"{tuple(p.shape)} {p.dtype} {p.requires_grad}" for p in _dense_sized(layer)),
        *(repr(value) for value in (call.shape, call.stride, call.dtype, call.requires_grad)),
        _autocast(device.type),
        training,
    ]
    format = getattr(layer, "format", None)
    if isinstance(format, SparseFormat):
        parameter = format.parameter
        facts += [format.name, format.shape, rounded_density(format.density)]
        facts += [parameter.dtype, parameter.requires_grad]
    return " | ".join(map(str, facts))


def _dense_sized(layer: nn.Module) -> list[nn.Parameter]:
    """The parameters whose size does not follow from the mask."""
    return [parameter for parameter in layer._parameters.values() if parameter is not None]


def _autocast(device: str) -> str:
    if not torch.is_autocast_enabled(device):
        return "no autocast"
    return f"autocast {torch.get_autocast_dtype(device)}"


def machine(device: torch.device) -> dict[str, Any]:
    """Where something was measured."""
    from sparsekern import __version__

    return {
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "isa": native.isa,
        "torch": str(torch.__version__),
        "sparsekern": __version__,
    }


def _from_rank_zero(make: Callable[[], Plan]) -> Plan:
    """Rank 0's plan on every rank; when it fails, every rank raises."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return make()
    box: list[Any] = [None]
    failure: Exception | None = None
    if dist.get_rank() == 0:
        try:
            box = [make().to_dict()]
        except Exception as error:  # the others are waiting: they must hear of any failure
            failure, box = error, [f"{type(error).__name__}: {error}"]
    dist.broadcast_object_list(box, 0)
    if failure is not None:
        raise failure
    if isinstance(box[0], str):
        raise RuntimeError(f"Expected rank 0 to measure a plan. Got {box[0]}")
    return Plan.from_dict(box[0])
