"""The CUDA library compiles for every architecture it is shipped for, without spills, and loads.

Part of ``make cuda-check``: needs nvcc, no GPU and no torch with CUDA. CMake's own target is built,
so flags and sources are those of the real library.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from tests.cuda.on_host import OPS_ON_HOST

ROOT = Path(__file__).resolve().parent.parent.parent
SOURCES = sorted(path.stem for path in (ROOT / "csrc" / "cuda").glob("*/*.cu"))
NVCC = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
TRITON = Path(torch.__file__).parent.parent / "triton"
ARCHITECTURES = ("sm_80", "sm_90a")
# Symbols that the library may want from elsewhere: torch's stable C ABI, libc, libstdc++.
STABLE = re.compile(r"^(aoti_torch_|torch_)\w+$")
SYSTEM = re.compile(r".+@(GLIBC|GLIBCXX|CXXABI|GCC)_")
WEAK = re.compile(r"^(_ITM_|__gmon_start__)")

pytestmark = [
    pytest.mark.device_code,
    pytest.mark.skipif(NVCC is None, reason="nvcc is not installed"),
    pytest.mark.skipif(os.environ.get("SPARSEKERN_NATIVE") == "0", reason="SPARSEKERN_NATIVE=0"),
]


@dataclass(frozen=True)
class Built:
    """The library and what ptxas said of each kernel."""

    path: Path
    log: str


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    folder = tmp_path_factory.mktemp("cuda")
    tools = Path(sys.executable).parent
    configure = [
        *(str(tools / "cmake"), f"-S{ROOT}", f"-B{folder}", "-GNinja"),
        f"-DCMAKE_MAKE_PROGRAM={tools / 'ninja'}",
        f"-DPython_EXECUTABLE={sys.executable}",
        f"-DSPARSEKERN_TORCH_DIR={Path(torch.__file__).parent}",
        f"-DSPARSEKERN_OUTPUT_DIR={folder}",
        "-DSPARSEKERN_CUDA=1",
        "-DCMAKE_CUDA_FLAGS=-Xptxas=-v -Werror=all-warnings",
    ]
    subprocess.run(configure, check=True, capture_output=True)
    build = [str(tools / "cmake"), "--build", str(folder), "--target", "sparsekern_cuda"]
    done = subprocess.run(build, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-6000:]
    return Built(folder / "lib" / "libsparsekern_cuda.so", done.stdout)


def test_no_kernel_spills(built: Built) -> None:
    names = subprocess.run(["c++filt"], input=built.log, capture_output=True, text=True).stdout
    kernel = r"Compiling entry function '(?:void )?(.+?)\(.*?' for '(\w+)'.*?"
    spills = r"(\d+) bytes spill stores, (\d+) bytes spill loads.*?Used (\d+) registers"
    found = re.findall(kernel + spills, names, flags=re.DOTALL)
    for name, architecture, stores, loads, registers in found:
        name = name.replace("sparsekern::", "")
        print(f"{architecture}: {registers:>3} registers  {name}")  # noqa: T201  (shown by make)
        assert (stores, loads) == ("0", "0"), f"{architecture}: {name}"
    assert {architecture for _, architecture, *_ in found} == set(ARCHITECTURES)
    for source in SOURCES:
        stem = source.removeprefix("masked_")
        assert any(stem in name.lower() for name, *_ in found), f"{source}.cu has no kernel"


def test_needs_the_stable_abi_alone(built: Built) -> None:
    listed = subprocess.run(
        ["nm", "-D", "--undefined-only", str(built.path)],
        check=True,
        capture_output=True,
        text=True,
    )
    symbols = [line.split()[-1] for line in listed.stdout.splitlines()]
    assert [s for s in symbols if not any(p.match(s) for p in (STABLE, SYSTEM, WEAK))] == []
    assert any(map(STABLE.match, symbols))


def test_holds_ptx_for_later_gpus(built: Built) -> None:
    tool = shutil.which("cuobjdump") or next(map(str, TRITON.glob("**/bin/cuobjdump")), None)
    if tool is None:
        pytest.skip("cuobjdump is not installed, nor Triton, which has one")
    command = [tool, "--list-elf", "--list-ptx", str(built.path)]
    listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    kinds = [re.findall(rf"\.(sm_\w+)\.{kind}", listed) for kind in ("cubin", "ptx")]
    assert Counter(kinds[0]) == dict.fromkeys(ARCHITECTURES, len(SOURCES))
    assert Counter(kinds[1]) == {ARCHITECTURES[0]: len(SOURCES)}


CALLS = """
import sys, torch
from sparsekern import ops
from sparsekern.ops import OPS
torch.ops.load_library(sys.argv[1])
for name in sys.argv[2:]:
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"sparsekern::{name}", "CUDA"), name
    # With a tensor on the CPU: what it says shows that its arguments were understood.
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
    cpu = torch.device("cpu")
    for sample in OPS[name].samples(cpu, torch.float32):
        if len(sample.args[0]) == 0:
            continue
        try:
            OPS[name].overload.redispatch(keys, *sample.args, **sample.kwargs)
        except RuntimeError as error:
            assert "[0] to be on a CUDA device. Got one on another." in str(error), error
        else:
            raise AssertionError(f"{name} took tensors on the CPU")
    print(name)
"""


def test_loads_into_this_torch_and_fits_its_schemas(built: Built) -> None:
    """Also into one without CUDA, where its kernels are registered and nothing calls them."""
    command = [sys.executable, "-c", CALLS, str(built.path), *OPS_ON_HOST]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == list(OPS_ON_HOST)


def test_is_found_by_the_package(built: Built) -> None:
    """As in a torch with CUDA, which is pretended."""
    code = f"""
import pathlib, torch
torch.version.cuda = "13.0"
from sparsekern import _extension as extension
extension.PACKAGE = pathlib.Path({str(built.path.parent.parent)!r})
print(extension._load_cuda())
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "reason=None" in done.stdout
    assert re.search(r"build='nvcc [\d.]+ for 80, 90a-real'", done.stdout), done.stdout
