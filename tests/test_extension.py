"""Life without the native library, and switches given by the environment."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sparsekern._extension import CudaLibrary, _is_truncated, cuda, native


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )


TRAIN = """
import warnings, torch, sparsekern as sk
warnings.simplefilter("always")
torch.manual_seed(0)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    model = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    pruner = sk.Pruner(model, optimizer, sk.prune.RigL(density=0.2, update_every=2), total_steps=8)
    for _ in range(8):
        model(torch.randn(4, 16)).square().mean().backward()
        pruner.step()
        optimizer.zero_grad()
    for layer in pruner.layers:
        layer.format.validate()
ours = [str(w.message) for w in caught if "sparsekern" in str(w.message)]
print(len(ours), ours[0] if ours else "")
"""


def test_everything_works_without_the_library() -> None:
    """One warning says so and why."""
    result = run(TRAIN, SPARSEKERN_NATIVE="0")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("1 sparsekern runs on its plain-torch references")
    assert "SPARSEKERN_NATIVE=0 is set" in result.stdout


@pytest.mark.parametrize(
    "line",
    [
        "sk.nn.SparseLinear(8, 4, density=0.5)",
        "sk.sparsify(torch.nn.Sequential(torch.nn.Linear(8, 4)), 0.5)",
    ],
)
def test_the_warning_points_at_the_users_line(tmp_path: Path, line: str) -> None:
    script = tmp_path / "user.py"
    script.write_text(f"import torch\nimport sparsekern as sk\n\n{line}\n")
    result = run(f"import runpy; runpy.run_path({str(script)!r})", SPARSEKERN_NATIVE="0")
    assert f"{script}:4: UserWarning: sparsekern runs on its plain-torch" in result.stderr


def test_no_warning_with_the_library() -> None:
    if not native.loaded:
        pytest.skip(f"no native library: {native.reason}")
    assert run(TRAIN).stdout.startswith("0")


def test_import_needs_torch_and_numpy_alone() -> None:
    code = """
import sys
import sparsekern
heavy = {"pydantic", "yaml", "typer", "rich", "safetensors", "matplotlib", "sklearn"}
print(sorted(heavy & set(sys.modules)))
"""
    result = run(code)
    assert result.stdout.strip() == "[]", result.stdout + result.stderr


def test_unknown_isa_is_refused() -> None:
    result = run("import sparsekern", SPARSEKERN_ISA="sse9")
    assert "Expected SPARSEKERN_ISA to be one of scalar, avx2, avx512. Got 'sse9'." in result.stderr


def test_scalar_isa_can_be_chosen() -> None:
    if not native.loaded:
        pytest.skip(f"no native library: {native.reason}")
    code = "from sparsekern._extension import _is_truncated, native; print(native.isa)"
    assert run(code, SPARSEKERN_ISA="scalar").stdout.strip() == "scalar"


def test_a_broken_library_is_explained(tmp_path: object) -> None:
    code = f"""
import pathlib, sparsekern._extension as extension
broken = pathlib.Path({str(tmp_path)!r}) / "lib" / "libsparsekern_cpu.so"
broken.parent.mkdir()
broken.write_bytes(b"not a library")
extension.PACKAGE = broken.parent.parent
found = extension._load()
print(found.loaded, found.reason)
"""
    result = run(code)
    assert result.stdout.startswith("False"), result.stderr
    assert "could not be loaded" in result.stdout


@pytest.mark.parametrize("kept", [0.00005, 0.3, 0.9, 0.9999, 1.0])
def test_a_truncated_library_is_not_loaded(kept: float, tmp_path: Path) -> None:
    """Loading one would end the process with SIGBUS."""
    if native.path is None:
        pytest.skip(f"no native library: {native.reason}")
    whole = native.path.read_bytes()
    part = tmp_path / native.path.name
    part.write_bytes(whole[: int(kept * len(whole))])
    assert _is_truncated(part) == (kept < 1)


def test_no_cuda_library_without_cuda() -> None:
    if torch.version.cuda is None:
        assert cuda == CudaLibrary(reason="torch was built without CUDA.")
        assert not cuda.loaded


PRETEND = """
import pathlib, torch
torch.version.cuda = "13.0"
def ask(*args):
    raise AssertionError("a device was asked for")
torch.cuda.is_available = torch.cuda.device_count = torch.cuda._lazy_init = ask
import sparsekern._extension as extension
extension.PACKAGE = pathlib.Path({package!r})
print(extension._load_cuda())
"""


@pytest.mark.parametrize(
    ("content", "environment", "reason"),
    [
        (None, {}, "no native library in {package}/lib; build it with `make cuda` (needs nvcc)."),
        (b"not a library", {}, "{package}/lib/libsparsekern_cuda.so could not be loaded: "),
        (None, {"SPARSEKERN_CUDA": "0"}, "SPARSEKERN_CUDA=0 is set."),
        (None, {"SPARSEKERN_NATIVE": "0"}, "SPARSEKERN_NATIVE=0 is set."),
    ],
)
def test_why_there_is_no_cuda_library(
    content: bytes | None, environment: dict[str, str], reason: str, tmp_path: Path
) -> None:
    """In a torch with CUDA, which is pretended; no device is looked for, so forks stay possible."""
    if content is not None:
        (tmp_path / "lib").mkdir()
        (tmp_path / "lib" / "libsparsekern_cuda.so").write_bytes(content)
    result = run(PRETEND.format(package=str(tmp_path)), **environment)
    assert result.returncode == 0, result.stderr
    assert f"reason={reason.format(package=tmp_path)!r}"[:-1] in result.stdout
    assert result.stderr == ""


def test_another_library_is_not_taken_for_it(tmp_path: Path) -> None:
    if native.path is None:
        pytest.skip(f"no native library: {native.reason}")
    (tmp_path / "lib").mkdir()
    shutil.copy(native.path, tmp_path / "lib" / "libsparsekern_cuda.so")
    result = run(PRETEND.format(package=str(tmp_path)), SPARSEKERN_NATIVE="1")
    assert "could not be loaded" in result.stdout, result.stderr
