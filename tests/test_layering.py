"""The house rules that a machine can check: layers, sizes, prints, asserts, docstrings."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from sparsekern import ops
from sparsekern.formats import FORMATS
from sparsekern.prune import METHODS

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "sparsekern"
PYTHON = sorted(PACKAGE.rglob("*.py"))
NATIVE = sorted(
    p for p in (ROOT / "csrc").rglob("*") if p.suffix in (".cpp", ".h", ".inl", ".cu", ".cuh")
)

OPEN = {"patterns", "_registry", "_checks", "_extension", "_files"}
BELOW_NN = {"formats", "ops"}
EVERYTHING = {
    "kernels",
    "ops",
    "testing",
    "formats",
    "nn",
    "curvature",
    "optim",
    "prune",
    "techniques",
    "analysis",
    "models",
    "data",
    "train",
    "integrations",
    "studies",
    "cli",
    "_C",
}
# layer -> what it may import besides OPEN and itself (DESIGN: layers point one way)
ALLOWED = {
    "patterns": set(),
    "_registry": set(),
    "_checks": set(),
    "_extension": {"_C"},
    "_files": set(),
    "kernels": set(),
    "ops": {"kernels"},
    "testing": {"kernels", "ops"},
    "formats": {"ops"},
    "nn": BELOW_NN,
    "curvature": BELOW_NN | {"nn"},
    "optim": BELOW_NN,
    "prune": BELOW_NN | {"nn", "optim", "curvature"},
    "techniques": BELOW_NN | {"nn", "optim"},
    "analysis": BELOW_NN | {"nn", "curvature"},
    "models": {"nn"},
    "data": {"nn"},
    "train": EVERYTHING - {"studies", "cli", "integrations"},
    "integrations": EVERYTHING - {"studies", "cli", "train"},
    "studies": EVERYTHING - {"cli"},
    "cli": EVERYTHING,
    "__init__": EVERYTHING - {"cli", "train", "data", "models", "studies", "integrations"},
    "__main__": EVERYTHING,
}
LIBRARY_IMPORTS = {"torch", "numpy"}  # what `import sparsekern` may need
LIBRARY_LAYERS = {
    "ops",
    "formats",
    "nn",
    "optim",
    "prune",
    "patterns",
    "_registry",
    "_checks",
    "_extension",
    "_files",
    "__init__",
}
# What a library file may import besides, inside of a function alone: only its callers need it.
LAZY_IMPORTS = {"sparsekern/nn/tensor_file.py": {"safetensors"}}


def layer_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return parts[0]


def imports(path: Path) -> Iterator[tuple[str, int]]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            if node.module == "sparsekern":
                yield from ((f"sparsekern.{alias.name}", node.lineno) for alias in node.names)
            else:
                yield str(node.module), node.lineno


def is_device_code(node: ast.AST) -> bool:
    """Whether it is a ``triton.jit`` function."""
    return isinstance(node, ast.FunctionDef) and any(
        ast.unparse(decorator).startswith("triton.jit") for decorator in node.decorator_list
    )


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", PYTHON, ids=relative)
def test_layers_point_one_way(path: Path) -> None:
    layer = layer_of(path)
    assert layer in ALLOWED, f"{relative(path)}: a layer that the table does not know"
    for name, line in imports(path):
        if not name.startswith("sparsekern."):
            continue
        target = name.split(".")[1]
        if target in OPEN or target == layer or target == "__version__":
            continue
        assert target in ALLOWED[layer], (
            f"{relative(path)}:{line}: {layer} must not import {target}"
        )


@pytest.mark.parametrize("path", [p for p in PYTHON if layer_of(p) in LIBRARY_LAYERS], ids=relative)
def test_library_needs_torch_and_numpy_alone(path: Path) -> None:
    import sys

    inside_functions = {
        node.lineno
        for function in ast.walk(ast.parse(path.read_text()))
        if isinstance(function, ast.FunctionDef)
        for node in ast.walk(function)
        if isinstance(node, (ast.Import, ast.ImportFrom))
    }
    for name, line in imports(path):
        top = name.split(".")[0]
        known = top == "sparsekern" or top in LIBRARY_IMPORTS or top in sys.stdlib_module_names
        known |= line in inside_functions and top in LAZY_IMPORTS.get(relative(path), set())
        assert known, f"{relative(path)}:{line}: the library must not need {top}"


@pytest.mark.parametrize("path", NATIVE, ids=relative)
def test_headers_for_kernels_know_no_torch(path: Path) -> None:
    """Vector bodies and device code include no torch header; op files the stable ABI only."""
    text = path.read_text()
    includes = re.findall(r'#include [<"]([^>"]+)[>"]', text)
    name = relative(path)
    torch_free = (
        "/cpu/isa/" in name
        or path.suffix == ".cuh"
        or name
        in {
            "csrc/common/ceil_div.h",
            "csrc/common/dtype.h",
            "csrc/common/inline.h",
            "csrc/common/index.h",
        }
    )
    for include in includes:
        if torch_free:
            assert not include.startswith(("torch/", "ATen/", "c10/")), f"{name}: {include}"
        elif not name.endswith("module.cpp"):
            stable = include.startswith(("torch/csrc/stable/", "torch/headeronly/"))
            assert stable or not include.startswith(("torch/", "ATen/", "c10/", "pybind11/")), (
                f"{name}: {include}"
            )


@pytest.mark.parametrize("path", PYTHON, ids=relative)
def test_sizes(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= 400, f"{relative(path)}: more than 400 lines"
    for node in ast.walk(ast.parse(text)):
        if is_device_code(node):
            length = (node.end_lineno or 0) - node.lineno + 1
            assert length <= 120, f"{relative(path)}:{node.lineno}: {length} lines"
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            length = (node.end_lineno or 0) - node.lineno + 1
            length -= (ast.get_docstring(node) or "").count("\n")
            limit = 120 if relative(path) == "sparsekern/train/loop.py" else 60
            assert length <= limit, (
                f"{relative(path)}:{node.lineno}: {node.name} has {length} lines"
            )
            positional = len(node.args.posonlyargs) + len(node.args.args)
            assert positional <= 8, f"{relative(path)}:{node.lineno}: {node.name}"


@pytest.mark.parametrize(
    "path", [p for p in PYTHON if layer_of(p) in LIBRARY_LAYERS | {"kernels"}], ids=relative
)
def test_triton_is_imported_by_kernels_alone(path: Path) -> None:
    """Importing the library works without Triton, and does not wait for it."""
    files = {"__init__.py", "launch.py"}
    if layer_of(path) != "kernels" or path.name in files:
        assert not [name for name, _ in imports(path) if name.split(".")[0] == "triton"]


@pytest.mark.parametrize("path", NATIVE, ids=relative)
def test_native_sizes(path: Path) -> None:
    assert path.read_text().count("\n") <= 500


@pytest.mark.parametrize("path", PYTHON, ids=relative)
def test_no_print_and_no_assert_on_input(path: Path) -> None:
    """Output belongs to the command line; asserts may only tell the type checker something."""
    for node in ast.walk(ast.parse(path.read_text())):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id == "print"
        ):
            assert layer_of(path) == "cli", f"{relative(path)}:{node.lineno}: print"
        if isinstance(node, ast.Assert) and layer_of(path) != "testing":
            source = ast.unparse(node.test)
            assert source.endswith("is not None") or source.startswith("isinstance("), (
                f"{relative(path)}:{node.lineno}: assert {source}"
            )


def test_no_catch_all_names() -> None:
    banned = {"utils.py", "util.py", "helpers.py", "misc.py", "common.py"}
    assert not [relative(p) for p in PYTHON if p.name in banned]


PUBLIC_OPS = [
    pytest.param(getattr(family, name), id=f"{family.__name__.rsplit('.', 1)[-1]}.{name}")
    for family in (ops.csr, ops.mask, ops.update)
    for name in family.__all__
    if callable(getattr(family, name))
    and not isinstance(getattr(family, name), type)
    and getattr(family, name).__module__.rsplit(".", 1)[-1] != "index"
]


@pytest.mark.parametrize("function", PUBLIC_OPS)
def test_public_ops_have_full_docstrings(function: object) -> None:
    for section in ("Args:", "Raises:", "Gradients:", "Deterministic", "Cost:"):
        assert section in (function.__doc__ or ""), section


@pytest.mark.parametrize("name", list(METHODS))
def test_methods_have_full_docstrings(name: str) -> None:
    for section in ("Args:", "Reference:", "Differences from the authors' code:"):
        assert section in (METHODS[name].__doc__ or ""), section


@pytest.mark.parametrize("name", list(FORMATS))
def test_formats_have_full_docstrings(name: str) -> None:
    assert "Bytes:" in (FORMATS[name].__doc__ or "")


@pytest.mark.parametrize("path", PYTHON, ids=relative)
def test_public_names_have_docstrings(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), f"{relative(path)}: the module"
    for node in tree.body:
        if is_device_code(node):
            continue  # the head of its file says what it computes
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{relative(path)}:{node.lineno}: {node.name}"
