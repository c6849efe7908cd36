"""Removes channels that are constant or unread from a dense model, where the result is the same.

An output channel ``j`` of a layer with zero weights is a constant ``c = bias[j]``; element-wise
functions, pooling and norms in eval carry it to ``c'``, and the next layer adds ``W[:, j] c'`` to
its bias. A channel whose column in the next layer is zero is not read. Both are cut out. What
happens between two layers is known from a trace (``torch.fx``); anything not listed here is left
alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

# Element-wise: the same function of every number, whatever the shape.
ELEMENTWISE = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Tanh,
    nn.Sigmoid, nn.Softplus, nn.Softsign, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.LogSigmoid,
    nn.Tanhshrink, nn.Softshrink, nn.Hardshrink, nn.Identity,
)  # fmt: skip
FUNCTIONS = {F.relu, torch.relu, F.gelu, F.silu, torch.tanh, torch.sigmoid, F.elu, F.leaky_relu}
METHODS = {"relu", "tanh", "sigmoid"}
DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.AlphaDropout)
POOLS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)


@dataclass
class ChannelReport:
    """What :func:`remove_channels` did: channels taken from each layer, and why others stayed."""

    removed: dict[str, int] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        rows = [f"{name}: {count} output channels removed" for name, count in self.removed.items()]
        rows += [f"{name}: left alone, {why}" for name, why in self.left.items()]
        return "\n".join(rows) or "nothing to remove"


class _UnprovableError(Exception):
    """Why a layer's channels cannot be followed to the next layer."""


@dataclass
class _Chain:
    """A layer, the modules and functions behind it, and the layer that reads the result."""

    producer: nn.Linear | nn.Conv2d
    between: list[fx.Node]
    reader: nn.Linear | nn.Conv2d
    spread: int = 1  # columns of the reader for one channel (a flattened image)


@torch.no_grad()
def remove_channels(model: nn.Module) -> ChannelReport:
    """Cuts constant and unread channels out of a dense model, in place, outputs unchanged.

    Chains of Linear and Conv2d with element-wise functions, pooling, Flatten, and in eval mode
    BatchNorm2d and Dropout between them are followed; the first layer's inputs and the last one's
    outputs stay. At least one channel a layer is kept. Layers with constant channels that could not
    be followed are named in the report, with the reason. Images must come in batches, ``[N, C, H,
    W]``.

    Parameters become new objects: for inference and export, not for an optimiser that holds them.
    """
    report = ChannelReport()
    suspects = [name for name, module in model.named_modules() if _has_constant(module)]
    try:
        graph = fx.Tracer().trace(model)
    except Exception as error:  # tracing runs the model's own code
        why = f"the model cannot be traced: {str(error).splitlines()[0]}"
        report.left = dict.fromkeys(suspects, why)
        return report
    uses: dict[str, int] = {}
    for node in graph.nodes:
        if node.op == "call_module":
            uses[str(node.target)] = uses.get(str(node.target), 0) + 1
    nodes = [n for n in graph.nodes if n.op == "call_module" and _is_layer(_module(model, n))]
    seen = {str(node.target) for node in nodes}
    report.left = {n: "inside of a module of torch" for n in suspects if n not in seen}
    changed = True
    while changed:
        changed = False
        for node in nodes:
            name = str(node.target)
            try:
                count = _cut(model, node, uses)
            except _UnprovableError as reason:
                if _has_constant(_module(model, node)):
                    report.left[name] = str(reason)
                continue
            if count:
                report.removed[name] = report.removed.get(name, 0) + count
                changed = True
    return report


def _module(model: nn.Module, node: fx.Node) -> nn.Module:
    return model.get_submodule(str(node.target))


def _is_layer(module: nn.Module) -> bool:
    return type(module) in (nn.Linear, nn.Conv2d)


def _constant(layer: nn.Linear | nn.Conv2d) -> Tensor:
    """Which outputs have no weights."""
    return (layer.weight == 0).flatten(1).all(1)


def _has_constant(module: nn.Module) -> bool:
    return isinstance(module, (nn.Linear, nn.Conv2d)) and bool(_constant(module).any())


def _cut(model: nn.Module, node: fx.Node, uses: dict[str, int]) -> int:
    """Removes what can be removed from one layer's outputs; how many."""
    chain = _follow(model, node, uses)
    producer, reader = chain.producer, chain.reader
    outputs = producer.weight.shape[0]
    columns = reader.weight.transpose(0, 1).reshape(outputs, -1)
    unread = (columns == 0).all(1)
    value = _carry(model, chain)
    constant = _constant(producer) & value.isfinite()
    padded = isinstance(reader, nn.Conv2d) and reader.padding not in (0, (0, 0), "valid")
    if padded:  # the border sees zeros, not the constant
        constant &= value == 0
    gone = constant | unread
    if bool(gone.all()):
        gone[0] = False
    count = int(gone.sum())
    if count == 0:
        return 0
    bias = (columns.view(outputs, chain.spread, reader.weight.shape[0], -1).sum((1, 3)).t()
            @ torch.where(gone & ~unread, value, 0))  # fmt: skip
    if bool((bias != 0).any()):
        old = torch.zeros_like(bias) if reader.bias is None else reader.bias
        reader.bias = nn.Parameter(old + bias)
    _keep_outputs(producer, ~gone)
    for between in chain.between:
        if between.op == "call_module":
            _keep_norm(_module(model, between), ~gone)
    _keep_inputs(reader, (~gone).repeat_interleave(chain.spread))
    return count


def _follow(model: nn.Module, node: fx.Node, uses: dict[str, int]) -> _Chain:
    """The way from a layer to the next one. Raises _UnprovableError where it is not known."""
    producer = _own(model, node, uses)
    assert isinstance(producer, (nn.Linear, nn.Conv2d))
    if isinstance(producer, nn.Conv2d) and producer.groups != 1:
        raise _UnprovableError("it has groups")
    image = isinstance(producer, nn.Conv2d)
    flat = False
    between: list[fx.Node] = []
    while True:
        if len(node.users) != 1:
            raise _UnprovableError(f"{node.name} is used {len(node.users)} times")
        node = next(iter(node.users))
        if node.op == "output":
            raise _UnprovableError("its channels are outputs of the model")
        if node.op == "call_module" and _is_layer(_module(model, node)):
            break
        if _flattens(model, node):
            flat = True
        else:
            _check_between(model, node, uses, image and not flat)
        between.append(node)
    reader = _own(model, node, uses)
    assert isinstance(reader, (nn.Linear, nn.Conv2d))
    return _chain(producer, between, reader, image, flat)


def _chain(
    producer: nn.Linear | nn.Conv2d,
    between: list[fx.Node],
    reader: nn.Linear | nn.Conv2d,
    image: bool,
    flat: bool,
) -> _Chain:
    outputs, inputs = producer.weight.shape[0], reader.weight.shape[1]
    if isinstance(reader, nn.Conv2d):
        if reader.groups != 1:
            raise _UnprovableError("the next layer has groups")
        if not image or flat or inputs != outputs:
            raise _UnprovableError("the next layer reads another dimension")
        return _Chain(producer, between, reader)
    if image:
        if not flat or inputs % outputs:
            raise _UnprovableError("the next layer reads another dimension")
        return _Chain(producer, between, reader, inputs // outputs)
    if inputs != outputs:
        raise _UnprovableError("the next layer reads another dimension")
    return _Chain(producer, between, reader)


def _own(model: nn.Module, node: fx.Node, uses: dict[str, int]) -> nn.Module:
    """The module of a node, if this is its only use and nobody shares or computes its tensors."""
    module = _module(model, node)
    names = [name for name, other in model.named_modules(remove_duplicate=False) if other is module]
    if uses[str(node.target)] != 1 or len(names) != 1:
        raise _UnprovableError(f"{node.target} is used more than once")
    if module._forward_hooks or module._forward_pre_hooks or hasattr(module, "parametrizations"):
        raise _UnprovableError(f"{node.target} has hooks or parametrizations")
    own = {id(parameter) for parameter in module.parameters()}
    shared = [id(p) for _, p in model.named_parameters(remove_duplicate=False) if id(p) in own]
    if len(shared) != len(own):
        raise _UnprovableError(f"{node.target} shares a parameter with another module")
    read = [n for n in node.graph.nodes if n.op == "get_attr"]
    if any(str(n.target).startswith(f"{node.target}.") for n in read):
        raise _UnprovableError(f"a parameter of {node.target} is read directly")
    return module


def _flattens(model: nn.Module, node: fx.Node) -> bool:
    """Whether a node makes ``[N, C, ...]`` to ``[N, C * ...]``."""
    if node.op == "call_module":
        module = _module(model, node)
        return isinstance(module, nn.Flatten) and (module.start_dim, module.end_dim) == (1, -1)
    is_flatten = node.target is torch.flatten or (node.op, node.target) == (
        "call_method",
        "flatten",
    )
    arguments = (*node.args[1:], *node.kwargs.values())
    return is_flatten and arguments in ((1,), (1, -1))


def _check_between(model: nn.Module, node: fx.Node, uses: dict[str, int], image: bool) -> None:
    """Raises unless a node treats every channel for itself, so that constants are carried."""
    if (node.op == "call_function" and node.target in FUNCTIONS) or (
        node.op == "call_method" and node.target in METHODS
    ):
        if any(isinstance(value, fx.Node) for value in (*node.args[1:], *node.kwargs.values())):
            raise _UnprovableError(f"{node.name} has a computed argument")
        return
    if node.op != "call_module":
        raise _UnprovableError(f"{node.name} is not known to treat each channel for itself")
    module = _module(model, node)
    if module._forward_hooks or module._forward_pre_hooks:
        raise _UnprovableError(f"{node.target} has hooks")
    if type(module) in ELEMENTWISE:
        return
    if type(module) in DROPOUTS:
        if module.training:
            raise _UnprovableError(f"{node.target} is in training mode: call model.eval() first")
        return
    if type(module) is nn.BatchNorm2d and image:
        _own(model, node, uses)
        if module.training or module.running_mean is None:
            raise _UnprovableError(f"{node.target} is in training mode: call model.eval() first")
        return
    if type(module) in POOLS and image:
        return
    raise _UnprovableError(
        f"{node.target} ({type(module).__name__}) is not known to keep channels apart"
    )


def _carry(model: nn.Module, chain: _Chain) -> Tensor:
    """What the reader sees of constant channels; NaN where a channel does not stay constant."""
    producer = chain.producer
    value = producer.weight.new_zeros(producer.weight.shape[0])
    if producer.bias is not None:
        value = producer.bias.clone()
    for node in chain.between:
        if _flattens(model, node):
            continue
        if node.op == "call_function":
            value = node.target(value, *node.args[1:], **node.kwargs)  # type: ignore[operator]
        elif node.op == "call_method":
            value = getattr(value, str(node.target))(*node.args[1:], **node.kwargs)
        else:
            value = _through(_module(model, node), value)
    return value


def _through(module: nn.Module, value: Tensor) -> Tensor:
    if isinstance(module, nn.AvgPool2d) and module.padding not in (0, (0, 0)):
        return torch.where(value == 0, value, torch.nan)  # the border is averaged with zeros
    if isinstance(module, (*POOLS, *DROPOUTS)):
        return value
    if isinstance(module, nn.BatchNorm2d):
        return module(value.view(1, -1, 1, 1)).flatten()
    result: Tensor = module(value.clone())
    return result


def _keep_outputs(layer: nn.Linear | nn.Conv2d, kept: Tensor) -> None:
    layer.weight = nn.Parameter(layer.weight[kept])
    if layer.bias is not None:
        layer.bias = nn.Parameter(layer.bias[kept])
    if isinstance(layer, nn.Linear):
        layer.out_features = layer.weight.shape[0]
    else:
        layer.out_channels = layer.weight.shape[0]


def _keep_inputs(layer: nn.Linear | nn.Conv2d, kept: Tensor) -> None:
    layer.weight = nn.Parameter(layer.weight[:, kept])
    if isinstance(layer, nn.Linear):
        layer.in_features = layer.weight.shape[1]
    else:
        layer.in_channels = layer.weight.shape[1]


def _keep_norm(module: nn.Module, kept: Tensor) -> None:
    if not isinstance(module, nn.BatchNorm2d):
        return
    module.num_features = int(kept.sum())
    if module.affine:
        module.weight = nn.Parameter(module.weight[kept])
        module.bias = nn.Parameter(module.bias[kept])
    assert module.running_mean is not None
    assert module.running_var is not None
    module.running_mean, module.running_var = module.running_mean[kept], module.running_var[kept]
