"""What is built and packed: the native library where it is wanted, and its sources."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
LEFTOVERS = ("lib/libsparsekern_cpu.so", "_C.cpython-311-x86_64-linux-gnu.so")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A source tree in which the library was built for an editable install."""
    ignored = shutil.ignore_patterns("*.so", "lib", "__pycache__")
    for name in ("sparsekern", "csrc"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignored)
    for file in ROOT.iterdir():
        if file.is_file() and not file.name.startswith("."):
            shutil.copy(file, tmp_path)
    _leave(tmp_path / "sparsekern")
    return tmp_path


def _leave(package: Path) -> None:
    for name in LEFTOVERS:
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_bytes(b"old")


def _setup(tree: Path, *arguments: str) -> None:
    command = [sys.executable, "setup.py", "-q", *arguments]
    environment = {**os.environ, "SPARSEKERN_NATIVE": "0"}
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_pure_python_has_no_library_of_an_earlier_build(tree: Path) -> None:
    _leave(tree / "out" / "sparsekern")
    _setup(tree, "build", "--build-lib", "out")
    package = tree / "out" / "sparsekern"
    assert (package / "py.typed").exists()
    assert (package / "recipes" / "digits-rigl.yaml").exists()
    assert not list(package.rglob("*.so"))


def test_source_distribution_can_be_built_from(tree: Path) -> None:
    _setup(tree, "sdist")
    (archive,) = (tree / "dist").glob("*.tar.gz")
    with tarfile.open(archive) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
    sources = {str(p.relative_to(tree)) for p in (tree / "csrc").rglob("*") if p.is_file()}
    wanted = {"CMakeLists.txt", "setup.py", "pyproject.toml", "LICENSE", "README.md"}
    assert wanted | sources <= names
    assert "sparsekern/recipes/digits-rigl.yaml" in names
    assert not [name for name in names if name.endswith(".so")]


def test_unknown_switch_is_refused(tree: Path) -> None:
    environment = {**os.environ, "SPARSEKERN_CUDA": "2"}
    command = [sys.executable, "setup.py", "-q", "--version"]
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)
    assert done.returncode != 0
    assert "Expected SPARSEKERN_CUDA to be one of auto, 0, 1. Got '2'." in done.stderr


def test_cuda_that_is_asked_for_needs_nvcc(tmp_path: Path) -> None:
    tools = Path(sys.executable).parent
    command = [
        *(str(tools / "cmake"), f"-S{ROOT}", f"-B{tmp_path}", "-GNinja"),
        f"-DCMAKE_MAKE_PROGRAM={tools / 'ninja'}",
        f"-DSPARSEKERN_TORCH_DIR={Path(torch.__file__).parent}",
        *("-DSPARSEKERN_CUDA=1", "-DSPARSEKERN_NVCC="),
    ]
    environment = {key: value for key, value in os.environ.items() if key != "CUDACXX"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode != 0
    assert "Expected nvcc to be installed for SPARSEKERN_CUDA=1." in done.stderr
