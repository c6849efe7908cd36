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


def configure(folder: Path, torch_dir: Path, cuda: str) -> subprocess.CompletedProcess[str]:
    """CMake's answer where the CUDA compiler is one that does not work."""
    tools = Path(sys.executable).parent
    command = [
        *(str(tools / "cmake"), f"-S{ROOT}", f"-B{folder}", "-GNinja"),
        *(f"-DCMAKE_MAKE_PROGRAM={tools / 'ninja'}", f"-DSPARSEKERN_TORCH_DIR={torch_dir}"),
        f"-DSPARSEKERN_CUDA={cuda}",
    ]
    environment = {**os.environ, "CUDACXX": "/bin/false"}
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_cuda_that_is_asked_for_needs_nvcc(tmp_path: Path) -> None:
    done = configure(tmp_path, Path(torch.__file__).parent, "1")
    assert done.returncode != 0
    wrapped = " ".join(done.stderr.split())
    assert "Expected SPARSEKERN_CUDA=1 to find nvcc 12.0 or later that works." in wrapped


@pytest.mark.parametrize("version", ["None", "'13.0'"])
def test_cuda_is_left_out_where_it_cannot_be_built(version: str, tmp_path: Path) -> None:
    """By default: without a word for a torch without CUDA, with one where nvcc does not work."""
    torch_dir = tmp_path / "torch"
    header = torch_dir / "include" / "torch" / "csrc" / "stable" / "library.h"
    header.parent.mkdir(parents=True)
    header.touch()
    lines = f"__version__ = '2.11.0'\ncuda: Optional[str] = {version}\n"
    (torch_dir / "version.py").write_text(lines)
    done = configure(tmp_path / "build", torch_dir, "auto")
    assert done.returncode == 0, done.stderr
    assert ("Building without CUDA C++" in done.stdout) == (version != "None")
