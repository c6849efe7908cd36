"""`python -m bench.gpu.build`: the native libraries, in build/gpu, where they are missing.

For a machine with compilers and no network: CMake is called as it is, nothing is installed. Where a
library cannot be built, the package goes on without it and says so.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "gpu"
CPU, CUDA = "libsparsekern_cpu.so", "libsparsekern_cuda.so"


def present(name: str) -> bool:
    """Whether the package would find that library, and it is not older than its sources."""
    places = [ROOT / "sparsekern" / "lib" / name, *sorted((ROOT / "build").glob(f"**/{name}"))]
    found = [place for place in places if place.exists()]
    sources = [path for path in (ROOT / "csrc").rglob("*") if path.is_file()]
    newest = max((path.stat().st_mtime for path in sources), default=0.0)
    return bool(found) and found[0].stat().st_mtime >= newest


def missing() -> list[str]:
    """The libraries that can be built here and are not there."""
    sources = {CPU: ROOT / "csrc" / "cpu", CUDA: ROOT / "csrc" / "cuda"}
    wanted = [CPU] if nvcc() is None else [CPU, CUDA]
    return [name for name in wanted if sources[name].exists() and not present(name)]


def nvcc() -> str | None:
    """The CUDA compiler, on PATH or where its installer puts it."""
    homes = (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda")
    places = [os.environ.get("PATH", ""), *(f"{home}/bin" for home in homes if home)]
    return shutil.which("nvcc", path=os.pathsep.join(places))


def tool(name: str) -> str | None:
    """cmake and ninja, beside this python or on PATH."""
    beside = str(Path(sys.executable).parent)
    return shutil.which(name, path=os.pathsep.join([beside, os.environ.get("PATH", "")]))


def commands(cmake: str) -> list[list[str]]:
    """Configure and build."""
    torch = importlib.util.find_spec("torch")
    assert torch is not None
    assert torch.origin is not None
    configure = [cmake, f"-S{ROOT}", f"-B{BUILD}", f"-DPython_EXECUTABLE={sys.executable}"]
    configure += [f"-DSPARSEKERN_TORCH_DIR={Path(torch.origin).parent}"]
    configure += [f"-DSPARSEKERN_OUTPUT_DIR={BUILD / 'sparsekern'}"]
    ninja, compiler = tool("ninja"), nvcc()
    if ninja is not None:
        configure += ["-GNinja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
    if compiler is not None:
        configure += ["-DSPARSEKERN_CUDA=auto", f"-DCMAKE_CUDA_COMPILER={compiler}"]
    return [configure, [cmake, "--build", str(BUILD), "--parallel", str(os.cpu_count())]]


def main() -> None:
    """Builds what is missing. Never fails: everything runs without, but slower."""
    wanted = missing()
    cmake = tool("cmake")
    if not wanted:
        print("native libraries: there already, or none that can be built here")
    elif cmake is None:
        print(f"native libraries: no cmake to build {', '.join(wanted)} with")
    else:
        for command in commands(cmake):
            if subprocess.run(command, cwd=ROOT).returncode != 0:
                print(f"native libraries: {' '.join(command)} failed; going on without")
                break
    for name in (CPU, CUDA):
        print(f"{name}: {'there' if present(name) else 'not there'}", flush=True)


if __name__ == "__main__":
    main()
