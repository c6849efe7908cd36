"""Builds the native library by calling CMake (CMakeLists.txt is the single truth).

Switches, all environment variables: SPARSEKERN_NATIVE=0 builds a pure-Python package;
SPARSEKERN_DEBUG=1 and SPARSEKERN_SANITIZE=address,undefined are passed on to CMake;
SPARSEKERN_CUDA=auto|0|1 says whether CUDA C++ is built (auto: where torch was built with CUDA and
nvcc works), SPARSEKERN_CUDA_ARCHS for which GPUs, in CMake's words: "80;90a-real".
"""

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
CUDA = ("auto", "0", "1")


def torch_dir() -> Path:
    """The installed torch, also when pip's build isolation hides it from `import`."""
    places = [Path(sysconfig.get_path(key)) / "torch" for key in ("purelib", "platlib")]
    spec = importlib.util.find_spec("torch")
    if spec is not None and spec.origin is not None:
        places.insert(0, Path(spec.origin).parent)
    for place in places:
        if (place / "include/torch/csrc/stable/library.h").exists():
            return place
    sys.exit(
        "Expected torch >= 2.10 to be installed before sparsekern is built. Got none in "
        f"{places[-1].parent}. Install torch first, or set SPARSEKERN_NATIVE=0 for pure Python."
    )


def switch(name: str, allowed: tuple[str, ...], default: str) -> str:
    value = os.environ.get(name, default)
    if value not in allowed:
        sys.exit(f"Expected {name} to be one of {', '.join(allowed)}. Got {value!r}.")
    return value


class CMakeBuild(build_ext):
    """Runs CMake once for the whole library."""

    def run(self) -> None:
        package = ROOT if self.inplace else Path(self.build_lib).resolve()
        build = ROOT / "build" / f"{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
        build.mkdir(parents=True, exist_ok=True)
        configure = [
            self.tool("cmake"),
            f"-S{ROOT}",
            f"-B{build}",
            "-GNinja",
            f"-DCMAKE_MAKE_PROGRAM={self.tool('ninja')}",
            f"-DSPARSEKERN_TORCH_DIR={torch_dir()}",
            f"-DSPARSEKERN_OUTPUT_DIR={package / 'sparsekern'}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-DSPARSEKERN_CUDA={switch('SPARSEKERN_CUDA', CUDA, 'auto')}",
            f"-DSPARSEKERN_DEBUG={switch('SPARSEKERN_DEBUG', ('0', '1'), '0')}",
            f"-DSPARSEKERN_SANITIZE={os.environ.get('SPARSEKERN_SANITIZE', '')}",
        ]
        if "SPARSEKERN_CUDA_ARCHS" in os.environ:
            configure.append(f"-DSPARSEKERN_CUDA_ARCHS={os.environ['SPARSEKERN_CUDA_ARCHS']}")
        if importlib.util.find_spec("pybind11") is not None:
            import pybind11

            configure.append(f"-Dpybind11_DIR={pybind11.get_cmake_dir()}")
        subprocess.run(configure, check=True)
        subprocess.run([self.tool("cmake"), "--build", str(build)], check=True)

    @staticmethod
    def tool(name: str) -> str:
        """cmake and ninja from the environment that builds (their wheels put them there)."""
        for folder in (
            Path(sys.executable).parent,
            *map(Path, os.environ["PATH"].split(os.pathsep)),
        ):
            if (folder / name).exists():
                return str(folder / name)
        sys.exit(f"Expected {name} to be installed. Got none on PATH: pip install {name}.")

    # CMake has put every file where it belongs; setuptools has nothing to copy.
    def get_outputs(self) -> list[str]:
        return []

    def get_output_mapping(self) -> dict[str, str]:
        return {}


class PythonBuild(build_py):
    """Copies the Python files; takes away what an earlier build has left of the native library."""

    def run(self) -> None:
        if not self.editable_mode:
            package = Path(self.build_lib) / "sparsekern"
            shutil.rmtree(package / "lib", ignore_errors=True)
            for extension in package.glob("_C.*"):
                extension.unlink()
        super().run()


switch("SPARSEKERN_CUDA", CUDA, "auto")
native = switch("SPARSEKERN_NATIVE", ("0", "1"), "1") == "1"
setup(
    ext_modules=[Extension("sparsekern._C", sources=[])] if native else [],
    cmdclass={"build_ext": CMakeBuild, "build_py": PythonBuild},
)
