"""Dense models to sparse ones and back."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from torch import Tensor, nn

from sparsekern._checks import check_model
from sparsekern.formats import SparseFormat
from sparsekern.nn.channels import remove_channels as cut_channels
from sparsekern.nn.conv import SparseConv2d
from sparsekern.nn.fuse import unfuse_activations
from sparsekern.nn.layer import SparseLayer, build_stored
from sparsekern.nn.linear import SparseLinear
from sparsekern.nn.transposed import SparseTransposedLinear, is_transposed_linear
from sparsekern.patterns import UNSTRUCTURED, Pattern

CALL_HOOKS = (  # what torch.nn.Module keeps of hooks on calls
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_is_full_backward_hook",
)

Model = TypeVar("Model", bound=nn.Module)


def sparse_layers(model: nn.Module) -> dict[str, SparseLayer]:
    """The sparse layers by name; of those that share a format (tied weights), the first."""
    layers: dict[str, SparseLayer] = {}
    seen: set[int] = set()
    for name, module in model.named_modules():
        if isinstance(module, SparseLayer) and id(module.format) not in seen:
            seen.add(id(module.format))
            layers[name] = module
    return layers


def to_sparse(
    model: nn.Module,
    names: list[str],
    mask: Tensor,
    *,
    format: str = "auto",
    master: str = "compact",
    pattern: Pattern = UNSTRUCTURED,
) -> SparseFormat:
    """Replaces dense layers that share one weight by sparse ones, in place.

    The Parameter objects stay: an optimiser built before remains valid, and its state of the old
    shape has to follow (:func:`sparsekern.optim.reset_state`).

    Args:
        model: changed in place.
        names: of its ``Linear`` or ``Conv2d`` layers; several names mean one tied weight.
        mask: bool, shaped like the layers' ``weight``, True = kept.
        format: "auto" or a format's name.
        master: "compact" or "dense", what ``format="auto"`` may choose from.
        pattern: what the mask is made of.

    Returns:
        The format, shared by all named layers.
    """
    stored = build_format(
        model.get_submodule(names[0]), mask, format=format, master=master, pattern=pattern
    )
    install(model, names, stored)
    return stored


def build_format(
    dense: nn.Module,
    mask: Tensor,
    *,
    format: str,
    master: str,
    pattern: Pattern = UNSTRUCTURED,
) -> SparseFormat:
    """What a dense layer's weight becomes (arguments of :func:`to_sparse`); changes nothing."""
    parameter = dense.weight
    assert isinstance(parameter, nn.Parameter)
    weight, mask = as_stored(dense, parameter.detach()), as_stored(dense, mask)
    return build_stored(weight, mask, format, pattern, master)


def as_stored(module: nn.Module, tensor: Tensor) -> Tensor:
    """A tensor shaped like the layer's ``weight`` in the orientation in which formats hold it."""
    return tensor.t().contiguous() if is_transposed_linear(module) else tensor


def install(model: nn.Module, names: list[str], stored: SparseFormat) -> None:
    """Puts sparse layers around ``stored`` in place of dense ones that share one weight, whose
    Parameter object lives on in it."""
    parameter = model.get_submodule(names[0]).weight
    assert isinstance(parameter, nn.Parameter)
    stored.adopt(parameter)
    for name in names:
        dense = model.get_submodule(name)
        layer = sparse_twin(dense, stored)
        layer.train(dense.training)
        carry_hooks(dense, layer)
        set_submodule(model, name, layer)


def install_all(model: nn.Module, built: list[tuple[list[str], SparseFormat]]) -> None:
    """:func:`install` for many weights, all or none: an error leaves the model as it was."""
    undo: list[Callable[[], None]] = []
    try:
        for names, stored in built:
            undo.append(_put_back(model, names))
            install(model, names, stored)
    except BaseException:
        for step in undo:
            step()
        raise


def _put_back(model: nn.Module, names: list[str]) -> Callable[[], None]:
    """Brings back what stands in the named places now."""
    layers = {name: model.get_submodule(name) for name in names}
    weight = layers[names[0]].weight
    assert isinstance(weight, nn.Parameter)
    data, gradient = weight.data, weight.grad

    def step() -> None:
        for name, layer in layers.items():
            set_submodule(model, name, layer)
        weight.data = data
        weight.grad = gradient

    return step


def carry_hooks(old: nn.Module, new: nn.Module) -> None:
    """Lets a layer have the hooks on calls (forward, backward, before either) of the one that it
    replaces; handles that remove them stay valid. Those on the state_dict speak of keys that the
    new layer does not have, and stay behind."""
    for name in CALL_HOOKS:
        setattr(new, name, getattr(old, name))


def sparse_twin(dense: nn.Module, stored: SparseFormat) -> SparseLayer:
    """The sparse layer that stands for a dense one; the bias is shared with it."""
    bias = getattr(dense, "bias", None)
    if is_transposed_linear(dense):
        return SparseTransposedLinear.around(stored, bias, type(dense))
    if isinstance(dense, nn.Conv2d):
        return SparseConv2d.from_format(stored, dense, bias)
    return SparseLinear.from_format(stored, bias)


def densify(model: Model, *, remove_channels: bool = False) -> Model:
    """A copy of the model with plain torch layers, zeros included; ``model`` is left alone.

    Tied sparse layers become layers that share one dense weight, a layer that stands in two places
    one that does. Frozen parameters stay frozen; hooks on calls come along.

    With ``remove_channels``, channels that are constant or that no later layer reads are cut out
    where the outputs provably stay the same, which makes the layers smaller; what was and was not
    removed is logged ("sparsekern", INFO). ``sk.nn.remove_channels(dense)`` returns it as a report.
    """
    check_model(model)
    dense = copy.deepcopy(model)
    unfuse_activations(dense)
    shared: dict[int, Any] = {}  # by what the sparse layers share
    done: dict[int, Any] = {}  # by the sparse layer
    for name, module in list(dense.named_modules(remove_duplicate=False)):
        if not isinstance(module, SparseLayer):
            continue
        if id(module) not in done:
            linear: Any = module.to_dense()
            carry_hooks(module, linear)
            linear.weight = shared.setdefault(id(module.format), linear.weight)
            if module.bias is not None:
                linear.bias = shared.setdefault(id(module.bias), linear.bias)
            done[id(module)] = linear
        linear = done[id(module)]
        if name == "":
            return linear
        set_submodule(dense, name, linear)
    if remove_channels:
        logging.getLogger("sparsekern").info("%s", cut_channels(dense))
    return dense


def set_submodule(model: nn.Module, name: str, module: nn.Module) -> None:
    """Puts ``module`` into the place called ``name``."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def dense_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every place of a ``torch.nn.Linear`` or ``Conv2d``, a subclass, or a transposed linear layer
    by name, tied places included."""
    for name, module in model.named_modules(remove_duplicate=False):
        kinds = (nn.Linear, nn.Conv2d)
        if (isinstance(module, kinds) or is_transposed_linear(module)) and name != "":
            yield name, module


LEFT_DENSE = "sparsekern_left_dense"  # attribute of a plain layer: why it stayed one


def note_left_dense(layer: nn.Module, why: str) -> None:
    """Leaves the reason at a plain layer, for :func:`sparsekern.explain`."""
    setattr(layer, LEFT_DENSE, why)


def why_left_dense(layer: nn.Module) -> str:
    """Why a layer is a plain torch layer, as far as it is known."""
    noted: str | None = getattr(layer, LEFT_DENSE, None)
    if noted is None and isinstance(layer, (nn.Linear, nn.Conv2d)):
        noted = why_not_convertible(layer)
    return noted or "not converted"


def why_not_convertible(layer: nn.Module) -> str | None:
    """The reason why a layer has to stay dense, or None."""
    if layer._parameters.get("weight") is None:
        return "its weight is computed from others (a parametrization or a hook)"
    if type(layer) not in (nn.Linear, nn.Conv2d) and not is_transposed_linear(layer):
        # The out_proj of nn.MultiheadAttention, for one: its owner multiplies by .weight itself.
        return f"a {type(layer).__name__}, whose owner may multiply by its weight directly"
    return None
