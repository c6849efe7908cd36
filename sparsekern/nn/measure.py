"""What the layers of a model are called with, and how long they take: nothing is changed by it."""

from __future__ import annotations

import copy
import gc
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sparsekern.formats import SparseFormat
from sparsekern.formats.plan import DENSE_LAYER, unwrapped

SECONDS = 0.15  # for the turns of one kind of call, forward or forward + backward
ROUNDS = (5, 60)
WARM_UP = 2

Run = Callable[[], object]
Times = dict[str, dict[str, float]]  # pass -> variant -> milliseconds


@dataclass(frozen=True)
class Call:
    """The tensor a layer was called with, but for its numbers."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    requires_grad: bool

    @classmethod
    def of(cls, x: Tensor) -> Call:
        """Overlapping and gapped tensors count as dense ones of the same order of dimensions."""
        stride = torch.empty_like(x, device="meta").stride()
        return cls(tuple(x.shape), stride, x.dtype, x.device, x.requires_grad)

    def make(self) -> Tensor:
        """A random tensor of this kind."""
        x = torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device=self.device)
        return (x.normal_() if x.is_floating_point() else x.zero_()).requires_grad_(
            self.requires_grad
        )

    def __str__(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')}{list(self.shape)}"


def capture(
    model: nn.Module, example: Any, layers: Sequence[nn.Module], training: bool
) -> dict[nn.Module, list[Call]]:
    """Runs the model once on ``example`` and notes what each of ``layers`` is called with.

    Nothing of the model changes: buffers, gradients and random numbers are as before. With
    ``training`` autograd is on, to see which layers need the gradient of their input.
    """
    calls: dict[nn.Module, list[Call]] = {layer: [] for layer in layers}

    def note(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        if given:
            calls[layer].append(Call.of(given[0]))

    handles = [layer.register_forward_pre_hook(note, with_kwargs=True) for layer in layers]
    args, kwargs = arguments_of(example)
    try:
        with unchanged(model), torch.set_grad_enabled(training):
            unwrapped(model)(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return calls


def arguments_of(example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and named arguments out of an example: a tensor, a tuple or list, a mapping."""
    if isinstance(example, Tensor):
        return (example,), {}
    if isinstance(example, (tuple, list)):
        return tuple(example), {}
    if isinstance(example, Mapping):
        return (), dict(example)
    raise TypeError(
        "Expected example to be a tensor, a tuple of arguments or a mapping of named ones. "
        f"Got {type(example).__name__}."
    )


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Puts buffers (running statistics and the like), training flags and random numbers back."""
    flags = [(module, module.training) for module in model.modules()]
    buffers = [
        (module, name, buffer, buffer.clone())
        for module in model.modules()
        if not isinstance(module, SparseFormat)  # no forward pass writes into an index
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    python = random.getstate()
    try:
        with untouched_random_numbers():
            yield
    finally:
        random.setstate(python)
        for module, name, buffer, copied in buffers:
            module._buffers[name] = buffer
            if not torch.equal(buffer, copied):
                with torch.no_grad():
                    buffer.copy_(copied)
        for module, training in flags:
            module.training = training


@contextmanager
def untouched_random_numbers() -> Iterator[None]:
    """torch's generators of all devices stand afterwards where they stood."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices):
        yield


def take_turns(
    contenders: Mapping[str, Run],
    seconds: float,
    rounds: tuple[int, int] = ROUNDS,
    warm_up: int = WARM_UP,
) -> dict[str, list[float]]:
    """Seconds of each run of each contender, which take turns: what slows one down slows all.

    Args:
        contenders: what to time, by name.
        seconds: to spend, within the least and the most ``rounds``.
        warm_up: untimed rounds before.
    """
    for _ in range(warm_up):
        for run in contenders.values():
            run()
    wait = torch.cuda.synchronize if torch.cuda.is_initialized() else _no_wait
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        start = time.perf_counter()
        for done in range(rounds[1]):
            if done >= rounds[0] and time.perf_counter() - start > seconds:
                break
            for name, run in contenders.items():
                wait()
                before = time.perf_counter()
                run()
                wait()
                taken[name].append(time.perf_counter() - before)
    finally:
        if collecting:
            gc.enable()
    return taken


def _no_wait() -> None:
    """CPU ops are done when they return."""


def time_layer(layer: nn.Module, call: Call, training: bool) -> Times:
    """Milliseconds of every variant of a sparse layer, and of a plain torch layer, for one call.

    The 20th percentile over the turns: other processes only ever add time. A variant that cannot
    run here is left out. A plain layer is timed alone.

    Args:
        layer: with a ``format`` that is a :class:`SparseFormat`, or any other module.
        call: what it is called with.
        training: also time forward + backward, with the gradients that are needed.
    """
    with untouched_random_numbers():
        x = call.make()
        contenders = _contenders(layer, x) if is_sparse(layer) else {DENSE_LAYER: layer}
        times = {"forward": _milliseconds({n: _forward(m, x) for n, m in contenders.items()})}
        if training and any(t.requires_grad for t in _leaves(layer, x)):
            both = {name: _forward_backward(module, x) for name, module in contenders.items()}
            times["forward_backward"] = _milliseconds(both)
    return times


def is_sparse(layer: nn.Module) -> bool:
    """Whether the module holds a sparse weight in its attribute ``format``."""
    return isinstance(getattr(layer, "format", None), SparseFormat)


def _contenders(layer: Any, x: Tensor) -> dict[str, nn.Module]:
    """A copy of the layer for each of its variants that runs here, and the plain torch layer."""
    found: dict[str, nn.Module] = {}
    for name in (*layer.format.variants, "auto"):
        twin = copy.deepcopy(layer)
        twin.format.take_dense_grad()  # a gradient that is asked for once is not part of a step
        twin.format.variant = name
        if twin.format.running in found:
            continue  # "auto" is one of the others, unless the reference is all that there is
        try:
            _forward(twin, x)()
        except NotImplementedError:
            continue
        found[twin.format.running] = twin
    dense = layer.to_dense()
    dense.weight.requires_grad_(layer.format.parameter.requires_grad)
    if getattr(layer, "bias", None) is not None:
        dense.bias.requires_grad_(layer.bias.requires_grad)
    return {**found, DENSE_LAYER: dense}


def _forward(layer: nn.Module, x: Tensor) -> Run:
    """Hooks are passed over: they belong to the user."""

    def run() -> None:
        torch.clear_autocast_cache()  # in training each weight is cast once a step
        with torch.no_grad():
            layer.forward(x)

    return run


def _leaves(layer: nn.Module, x: Tensor) -> list[Tensor]:
    return [x, *layer.parameters()]


def _forward_backward(layer: nn.Module, x: Tensor) -> Run:
    """No gradient is stored, so those that the model has are left alone."""
    wanted = [leaf for leaf in _leaves(layer, x) if leaf.requires_grad]
    with torch.enable_grad():
        grad = torch.randn_like(layer.forward(x))

    def run() -> None:
        torch.clear_autocast_cache()
        with torch.enable_grad():
            torch.autograd.grad(layer.forward(x), wanted, grad)

    return run


def _milliseconds(contenders: dict[str, Run]) -> dict[str, float]:
    taken = take_turns(contenders, SECONDS)
    return {name: round(1e3 * sorted(all_)[len(all_) // 5], 5) for name, all_ in taken.items()}
