"""``sk.save`` and ``sk.load``: a sparse model in one safetensors file, topology included.

The file holds the model's ``state_dict`` under its own names (``<layer>.format.values``, ``crow``,
``col``, ``version`` for a csr layer). Its metadata say which layers are sparse and how they are
stored, so that a fresh dense model, or a sparse one of other formats, can become the same model.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparsekern.formats import FORMATS, Plan, SparseFormat
from sparsekern.formats.plan import unwrapped
from sparsekern.formats.replace import check_no_graph, replace_data
from sparsekern.nn.convert import (
    as_stored,
    install,
    set_submodule,
    why_not_convertible,
)
from sparsekern.nn.tensor_file import read_tensors, write_tensors
from sparsekern.patterns import UNSTRUCTURED

FILE_VERSION = 1  # of the header; a format's own version is in its state
HEADER, PLAN = "sparsekern", "plan"  # entries of the file's metadata


@dataclass(frozen=True)
class StoredLayer:
    """One sparse weight of a file, and the layers that use it."""

    names: list[str]
    format: str
    shape: tuple[int, ...]
    pattern: str


@dataclass
class LoadReport:
    """What a file held. ``plan`` is the one that :func:`save` was given, or None: apply it with
    ``report.plan.apply(model)``."""

    layers: list[StoredLayer] = field(default_factory=list)
    plan: Plan | None = None

    def __str__(self) -> str:
        rows = [f"{', '.join(x.names)}: {x.format}, {x.shape}, {x.pattern}" for x in self.layers]
        return "\n".join([*rows, "with a plan" if self.plan is not None else "without a plan"])


def save(model: nn.Module, path: str | os.PathLike[str], *, plan: Plan | None = None) -> None:
    """Writes a model, sparse or dense, to one safetensors file.

    The file appears as a whole or not at all; tensors that several names share are stored once. A
    wrapper of DistributedDataParallel or torch.compile is left out of the names.

    Args:
        model: any module.
        path: of the file; an older one is replaced.
        plan: of :func:`sparsekern.tune`, to be found in ``load(...).plan``.

    Raises:
        TypeError: the state_dict holds something else than tensors; a plan that is no Plan.
        ValueError: the plan of another model.
        FileNotFoundError: no such folder.
    """
    if plan is not None and not isinstance(plan, Plan):
        raise TypeError(f"Expected plan to be a Plan. Got {type(plan).__name__}.")
    if plan is not None:
        plan.validate(model)
    root = unwrapped(model)
    by_format: dict[int, StoredLayer] = {}
    for name, layer in _layers(root):
        stored: SparseFormat = layer.format
        pattern = type(getattr(stored, "pattern", UNSTRUCTURED)).__name__
        row = StoredLayer([], stored.name, tuple(stored.shape), pattern)
        by_format.setdefault(id(stored), row).names.append(name)
    header = {"version": FILE_VERSION, "layers": [vars(row) for row in by_format.values()]}
    metadata = {HEADER: json.dumps(header)} | ({} if plan is None else {PLAN: plan.to_json()})
    write_tensors(Path(path), root.state_dict(), metadata)


def load(model: nn.Module | None, path: str | os.PathLike[str]) -> LoadReport:
    """Makes a model the one that :func:`save` wrote: weights, buffers, formats and masks.

    ``model`` is a fresh dense model, or one that is sparse in any way. Each layer takes the file's
    format and topology, also where the file has it dense; dtypes, devices, tied weights and
    Parameter objects stay those of ``model``. Build optimisers' states and a Pruner afterwards: a
    parameter whose shape changes loses its gradient. Everything is checked before anything is
    changed. With ``model=None`` the file is only read and reported.

    Returns:
        What the file held, with its plan.

    Raises:
        ValueError: no such file, truncated, not of :func:`save`, of another version, of another
            model (missing, unexpected or differently shaped tensors by name), or weights that are
            tied otherwise. The model is as it was before.
        RuntimeError: a graph of an earlier step is alive.
    """
    path = Path(path)
    tensors, metadata = read_tensors(path)
    report = _read_header(path, metadata)
    if model is not None:
        loading = _Loading(path, unwrapped(model), tensors, report.layers)
        loading.check()
        if model is not loading.root and loading.changes_shapes():
            raise ValueError(
                "Expected the model to be loaded before it is wrapped (DistributedDataParallel, "
                "torch.compile). Got a wrapped model whose parameters would change their shapes."
            )
        loading.check_graphs()
        loading.commit()
    return report


def _layers(model: nn.Module) -> list[tuple[str, Any]]:
    """Every place of a sparse layer by name, tied places included."""
    return [
        (name, module)
        for name, module in model.named_modules(remove_duplicate=False)
        if isinstance(getattr(module, "format", None), SparseFormat)
    ]


def _read_header(path: Path, metadata: dict[str, str]) -> LoadReport:
    if HEADER not in metadata:
        raise ValueError(
            f"Expected {path} to be written by sparsekern.save. Got a safetensors file without its "
            "header: use load_state_dict for a plain one."
        )
    try:
        header = json.loads(metadata[HEADER])
        version = header["version"]
        layers = header["layers"] if version == FILE_VERSION else []
        rows = [StoredLayer(**{**row, "shape": tuple(row["shape"])}) for row in layers]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"Expected {path} to have a whole header. Got a broken one.") from None
    if version != FILE_VERSION:
        raise ValueError(
            f"Expected {path} to have format version {FILE_VERSION}. Got {version!r}, written by "
            "another version of sparsekern."
        )
    plan = metadata.get(PLAN)
    try:
        return LoadReport(rows, None if plan is None else Plan.from_json(plan))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


class _Loading:
    """One load: everything is checked, then everything is changed."""

    def __init__(
        self, path: Path, root: nn.Module, tensors: dict[str, Tensor], rows: list[StoredLayer]
    ) -> None:
        self.path, self.root, self.tensors = path, root, tensors
        self.row_of = {name: row for row in rows for name in row.names}
        self.modules = dict(root.named_modules(remove_duplicate=False))
        self.sparse = dict(_layers(root))
        self.formats: list[tuple[list[str], nn.Parameter, SparseFormat]] = []  # to take over
        self.dense: list[tuple[nn.Parameter, dict[str, nn.Module]]] = []  # to become dense

    def check(self) -> None:
        """Raises ValueError unless the file fits, and prepares what is to be changed."""
        if any(tensor.is_meta for tensor in (*self.root.parameters(), *self.root.buffers())):
            raise self._refusal("its tensors on a device", "meta: call to_empty first")
        for name, row in self.row_of.items():
            self._check_layer(name, row)
        self._check_names()
        for names, parameter in self._weights():
            sparse = [name in self.row_of for name in names]
            if not any(sparse):
                self.dense.append((parameter, {n: self.sparse[n].to_dense() for n in names}))
                continue
            if not all(sparse) or len({id(self.row_of[name]) for name in names}) > 1:
                raise self._refusal(
                    f"the weights of {', '.join(map(repr, names))} to be one, as they are here",
                    "separate ones",
                )
            self.formats.append((names, parameter, self._build(names[0], parameter)))
        if any("" in twins for _, twins in self.dense):
            raise self._refusal("a dense layer inside of a model", "a single sparse layer")

    def check_graphs(self) -> None:
        """Raises RuntimeError if a graph is alive that keeps a parameter from its new shape."""
        for _, parameter, stored in self.formats:
            check_no_graph(parameter, stored.parameter.shape)
        for parameter, twins in self.dense:
            check_no_graph(parameter, _weight(next(iter(twins.values()))).shape)

    def _refusal(self, expected: str, got: str) -> ValueError:
        return ValueError(f"Expected {self.path} to fit the model: {expected}. Got {got}.")

    def _check_layer(self, name: str, row: StoredLayer) -> None:
        module = self.modules.get(name)
        if module is None:
            raise self._refusal("a file of its layers", f"a sparse layer {name!r}, which it lacks")
        if row.format not in FORMATS:
            raise self._refusal(f"a known format for {name!r}", f"{row.format!r}")
        if name in self.sparse:
            shape = tuple(self.sparse[name].format.shape)
        else:
            reason = why_not_convertible(module) if name else "the model itself, not a part of it"
            if reason is not None:
                raise self._refusal(f"{name!r} to be a layer that can be sparse", reason)
            shape = tuple(as_stored(module, _weight(module).detach()).shape)
        if shape != row.shape:
            raise self._refusal(f"{name!r} of shape {shape}", f"{row.shape}")

    def _check_names(self) -> None:
        """The tensors that are not in sparse layers: the same names and shapes on both sides."""
        state = self.root.state_dict()
        own = {k: tuple(v.shape) for k, v in state.items() if isinstance(v, Tensor)}
        for name, layer in self.sparse.items():
            for key in layer.format.state_dict():
                own.pop(_join(name, f"format.{key}"))
            if name not in self.row_of:
                own[_join(name, "weight")] = tuple(layer.weight.shape)
        for name in self.row_of:
            if name not in self.sparse:
                own.pop(_join(name, "weight"))
        found = self._rest()
        problems = []
        for what, keys in (
            ("no", [key for key in own if key not in found]),
            ("an unexpected", [key for key in found if key not in own]),
        ):
            if keys:
                more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
                problems.append(f"{what} {', '.join(keys[:3])}{more}")
        if problems:
            raise self._refusal("the same tensors", "; ".join(problems))
        for key, shape in own.items():
            if tuple(found[key].shape) != shape:
                raise self._refusal(f"{key} of shape {shape}", f"{tuple(found[key].shape)}")

    def _rest(self) -> dict[str, Tensor]:
        prefixes = tuple(_join(name, "format.") for name in self.row_of)
        return {k: v for k, v in self.tensors.items() if not k.startswith(prefixes)}

    def _weights(self) -> list[tuple[list[str], nn.Parameter]]:
        """The weights that are or become sparse, each with every module that uses it."""
        users: dict[int, tuple[list[str], nn.Parameter]] = {}
        for name, module in self.modules.items():
            if name in self.sparse:
                parameters = [self.sparse[name].format.parameter]
            elif isinstance(module, SparseFormat):
                continue
            else:
                parameters = [p for p in module._parameters.values() if p is not None]
            for parameter in parameters:
                users.setdefault(id(parameter), ([], parameter))[0].append(name)
        weights = [self._parameter(name) for name in {**self.row_of, **self.sparse}]
        return [users[key] for key in dict.fromkeys(id(parameter) for parameter in weights)]

    def _parameter(self, name: str) -> nn.Parameter:
        if name in self.sparse:
            return self.sparse[name].format.parameter
        return _weight(self.modules[name])

    def _build(self, name: str, parameter: nn.Parameter) -> SparseFormat:
        """The file's format of one weight with the model's dtype and device; its content is
        checked by the format itself."""
        row = self.row_of[name]
        prefix = _join(row.names[0], "format.")
        state = {
            key[len(prefix) :]: value
            for key, value in self.tensors.items()
            if key.startswith(prefix)
        }
        empty = torch.zeros(row.shape, dtype=parameter.dtype, device=parameter.device)
        stored = FORMATS[row.format].from_dense(empty, torch.zeros_like(empty, dtype=torch.bool))
        if state.keys() != stored.state_dict().keys():
            keys = ", ".join(stored.state_dict())
            raise self._refusal(f"{name!r} with {keys}", ", ".join(state) or "nothing")
        try:
            stored.load_state_dict(state)
        except RuntimeError as error:
            reason = " ".join(str(error).split("\n\t")[1:]).strip(": ")
            raise ValueError(f"{self.path}, layer {name!r}: {reason}") from None
        return stored

    def changes_shapes(self) -> bool:
        """Whether a parameter gets another shape or a layer another class."""
        return bool(self.dense) or any(
            names[0] not in self.sparse or parameter.shape != stored.parameter.shape
            for names, parameter, stored in self.formats
        )

    @torch.no_grad()
    def commit(self) -> None:
        """Changes the model; nothing here can be refused any more."""
        for names, parameter, stored in self.formats:
            if names[0] not in self.sparse:
                install(self.root, names, stored)
            elif self.sparse[names[0]].format.name == stored.name:
                self.sparse[names[0]].format.load_state_dict(stored.state_dict())
            else:
                stored.adopt(parameter)
                for name in names:
                    self.sparse[name].format = stored
        for parameter, twins in self.dense:
            replace_data(parameter, _weight(next(iter(twins.values()))).data)
            for name, dense in twins.items():
                dense.weight, dense.bias = parameter, self.sparse[name].bias
                set_submodule(self.root, name, dense)
        self.root.load_state_dict(self._rest(), strict=False)


def _join(name: str, key: str) -> str:
    return f"{name}.{key}" if name else key


def _weight(module: nn.Module) -> nn.Parameter:
    weight = module.weight
    assert isinstance(weight, nn.Parameter)
    return weight
