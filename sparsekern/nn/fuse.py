"""``sk.nn.fuse_activations``: layers of a Sequential that apply the activation behind them."""

from __future__ import annotations

import itertools

from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from sparsekern._checks import check_model
from sparsekern.nn.conv import SparseConv2d
from sparsekern.nn.linear import SparseLinear

_GELUS = {"none": "gelu", "tanh": "gelu_tanh"}  # torch's names of the approximations: the ops'


class FusedSequential(nn.Sequential):
    """A Sequential whose sparse layers apply the ReLU or GELU that follows them, which is then
    passed over. :func:`fuse_activations` makes it.

    What is fused is looked up in each call, so layers may be replaced and hooks registered at any
    time: a pair of which a module has hooks, or that is no pair any more, runs as it would in a
    plain Sequential.
    """

    def forward(self, input: Tensor) -> Tensor:
        modules = list(self)
        may_fuse = not _has_any_global_hook()
        i = 0
        while i < len(modules):
            activation = None
            if may_fuse and i + 1 < len(modules):
                activation = activation_of(modules[i], modules[i + 1])
            if activation is None:
                input = modules[i](input)
                i += 1
            else:
                input = modules[i](input, activation=activation)
                i += 2
        return input


def activation_of(layer: nn.Module, following: nn.Module) -> str | None:
    """What the ops call the activation ``following``, if ``layer`` applies it: both are there, and
    nothing but their own forward runs when they are called."""
    activation = _name_of_pair(layer, following)
    return activation if activation and _is_bare(layer) and _is_bare(following) else None


def _name_of_pair(layer: nn.Module, following: nn.Module) -> str | None:
    if type(layer) not in (SparseLinear, SparseConv2d):
        return None
    if type(following) is nn.ReLU:
        return "relu"
    return _GELUS.get(following.approximate) if type(following) is nn.GELU else None


def _is_bare(module: nn.Module) -> bool:
    hooked = (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )
    return not hooked and "forward" not in module.__dict__


def fused_activations(model: nn.Module) -> dict[str, str]:
    """The layers that apply an activation by now, and which."""
    found = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, FusedSequential):
            for (name, layer), (_, following) in itertools.pairwise(module._modules.items()):
                activation = activation_of(layer, following)
                if activation is not None:
                    found[f"{prefix}.{name}" if prefix else name] = activation
    return found


def fuse_activations(model: nn.Module) -> list[str]:
    """Lets each ``SparseLinear`` and ``SparseConv2d`` that stands before a ``ReLU`` or ``GELU`` in
    an ``nn.Sequential`` apply it, in place.

    A choice of execution, like a format's ``variant``: modules, their order and names, parameters,
    ``state_dict`` and what :func:`sparsekern.save` writes stay as they are; copies and pickles keep
    the choice, :func:`sparsekern.densify` gives plain torch, :func:`unfuse_activations` takes it
    back. The activation is applied before outputs are stored, and ReLU's gradient is taken while
    that of a linear layer's outputs is read. GELU is fused where no gradient is wanted. Formats and
    variants that run other kernels apply the activation after them, as before.

    Not fused: what a ``forward`` calls by hand (``F.relu(self.layer(x))``); subclasses of
    ``nn.Sequential``, ``ReLU`` and ``GELU``; layers that are still dense (call it again after
    :func:`sparsekern.sparsify`); modules with hooks, as long as they have them.

    Args:
        model: any; where there is a pair, its ``nn.Sequential`` becomes a :class:`FusedSequential`.

    Returns:
        The names of the layers that apply an activation now.

    Raises:
        TypeError: ``model`` is no module.

    >>> model = torch.nn.Sequential(sk.nn.SparseLinear(64, 64, density=0.1), torch.nn.ReLU())
    >>> sk.nn.fuse_activations(model)
    ['0']
    """
    check_model(model)
    for module in model.modules():
        if type(module) is nn.Sequential:
            pairs = itertools.pairwise(module)
            if any(_name_of_pair(layer, following) for layer, following in pairs):
                module.__class__ = FusedSequential
    return list(fused_activations(model))


def unfuse_activations(model: nn.Module) -> None:
    """Makes every :class:`FusedSequential` of a model a plain ``nn.Sequential`` again, in place.

    Raises:
        TypeError: ``model`` is no module.
    """
    check_model(model)
    for module in model.modules():
        if type(module) is FusedSequential:
            module.__class__ = nn.Sequential  # type: ignore[assignment]
