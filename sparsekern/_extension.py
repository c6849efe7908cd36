"""Finds and loads the native libraries, and remembers why it could not.

The library (``lib/libsparsekern_cpu.so``) registers CPU kernels for ops whose schemas are defined
in Python (:mod:`sparsekern.ops`). It uses torch's stable ABI only, so one file serves every torch
from 2.10 on. Without it every op runs its plain-torch reference. With ``SPARSEKERN_DEBUG=1`` in the
environment it checks whole indices before it follows them, which is slow.

``lib/libsparsekern_cuda.so`` holds the CUDA C++ kernels and is loaded where torch was built with
CUDA; without it Triton serves, or the references. ``SPARSEKERN_CUDA=0`` does without it.
"""

from __future__ import annotations

import ctypes
import os
import struct
from dataclasses import dataclass, field
from pathlib import Path

import torch

from sparsekern._checks import warn

PACKAGE = Path(__file__).resolve().parent
ISAS = ("scalar", "avx2", "avx512")
MINIMUM_TORCH = (2, 10)


@dataclass
class NativeLibrary:
    """What was loaded, or the reason why nothing was."""

    path: Path | None = None
    isa: str | None = None
    debug: bool = False  # every index is checked before it is followed, scratch holds NaN
    reason: str | None = None
    warned: bool = field(default=False, repr=False)

    @property
    def loaded(self) -> bool:
        return self.path is not None

    def warn_once(self) -> None:
        """One warning per process: everything works without the library, but slowly."""
        if not self.loaded and not self.warned:
            self.warned = True
            warn(
                f"sparsekern runs on its plain-torch references, which save no time: {self.reason}"
            )


@dataclass
class CudaLibrary:
    """The CUDA kernels that were loaded, or the reason why none were."""

    path: Path | None = None
    build: str | None = None  # compiler and architectures
    reason: str | None = None

    @property
    def loaded(self) -> bool:
        return self.path is not None


def _candidates(name: str) -> list[Path]:
    """Where a library may lie: the package, then build folders of a source checkout."""
    places = [PACKAGE / "lib" / name]
    places += sorted((PACKAGE.parent / "build").glob(f"**/{name}"))
    return places


def _check_isa() -> None:
    wanted = os.environ.get("SPARSEKERN_ISA")
    if wanted is not None and wanted not in ISAS:
        raise ValueError(f"Expected SPARSEKERN_ISA to be one of {', '.join(ISAS)}. Got {wanted!r}.")


def _check_cuda() -> None:
    wanted = os.environ.get("SPARSEKERN_CUDA", "auto")
    if wanted not in ("auto", "0", "1"):
        raise ValueError(f"Expected SPARSEKERN_CUDA to be one of auto, 0, 1. Got {wanted!r}.")


def _check_debug() -> None:
    wanted = os.environ.get("SPARSEKERN_DEBUG", "0")
    if wanted not in ("0", "1"):
        raise ValueError(f"Expected SPARSEKERN_DEBUG to be 0 or 1. Got {wanted!r}.")


def _check_kept_memory() -> None:
    wanted = os.environ.get("SPARSEKERN_KEEP_MB")
    if wanted is not None and not (wanted.isascii() and wanted.isdigit() and len(wanted) < 10):
        raise ValueError(
            "Expected SPARSEKERN_KEEP_MB to be a whole number of megabytes (of freed results that "
            f"native code keeps for the next ones). Got {wanted!r}."
        )


def _is_truncated(path: Path) -> bool:
    """Whether a 64-bit ELF file ends before its section table, which linkers write last.

    The loader maps such a file without complaint and the process dies at the first missing page.
    """
    with path.open("rb") as file:
        header = file.read(64)
    if header[:5] != b"\x7fELF\x02":
        return False  # another format: the loader judges
    if len(header) < 64:
        return True
    (table,) = struct.unpack_from("<Q", header, 0x28)
    entry_size, entries = struct.unpack_from("<HH", header, 0x3A)
    return path.stat().st_size < table + entry_size * entries


def _open(name: str, how_to_build: str) -> tuple[Path, ctypes.CDLL] | str:
    """The loaded library, its kernels registered, or the reason why it is not."""
    if os.environ.get("SPARSEKERN_NATIVE", "1") == "0":
        return "SPARSEKERN_NATIVE=0 is set."
    version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    if version < MINIMUM_TORCH:
        return f"torch >= 2.10 is needed. Got {torch.__version__}."
    found = [path for path in _candidates(name) if path.exists()]
    if not found:
        return f"no native library in {PACKAGE / 'lib'}; build it with {how_to_build}."
    if _is_truncated(found[0]):
        return f"{found[0]} is truncated; install the package again."
    try:
        torch.ops.load_library(str(found[0]))
        return found[0], ctypes.CDLL(str(found[0]))
    except OSError as error:
        return f"{found[0]} could not be loaded: {error}"


def _load() -> NativeLibrary:
    opened = _open("libsparsekern_cpu.so", "`pip install .` (see README, Install)")
    if isinstance(opened, str):
        return NativeLibrary(reason=opened)
    path, library = opened
    try:
        active_isa, is_debugging = library.sparsekern_active_isa, library.sparsekern_is_debugging
    except AttributeError as error:
        return NativeLibrary(reason=f"{path} could not be loaded: {error}")
    active_isa.restype = ctypes.c_char_p
    isa = active_isa().decode()
    wanted = os.environ.get("SPARSEKERN_ISA")
    if wanted is not None and wanted != isa:
        raise RuntimeError(
            f"Expected SPARSEKERN_ISA to name an instruction set of this machine. Got {wanted!r}; "
            f"the widest here is {isa!r}."
        )
    return NativeLibrary(path=path, isa=isa, debug=bool(is_debugging()))


def _load_cuda() -> CudaLibrary:
    """NOTE: no device is asked for: that would start CUDA, which processes that fork later on could
    then not use. Without a device the kernels are never called."""
    if torch.version.cuda is None:
        return CudaLibrary(reason="torch was built without CUDA.")
    if os.environ.get("SPARSEKERN_CUDA", "auto") == "0":
        return CudaLibrary(reason="SPARSEKERN_CUDA=0 is set.")
    opened = _open("libsparsekern_cuda.so", "`make cuda` (needs nvcc)")
    if isinstance(opened, str):
        return CudaLibrary(reason=opened)
    path, library = opened
    try:
        build = library.sparsekern_cuda_build
    except AttributeError as error:
        return CudaLibrary(reason=f"{path} could not be loaded: {error}")
    build.restype = ctypes.c_char_p
    return CudaLibrary(path=path, build=build().decode())


_check_isa()
_check_cuda()
_check_debug()
_check_kept_memory()
native = _load()
cuda = _load_cuda()
