"""Shared fixtures: repeatable randomness, NaN in uninitialised memory, torch's thread count."""

from __future__ import annotations

import importlib.util
import os
import zlib
from collections.abc import Iterator

# A graph compiled by an earlier build of this package must not be found in a cache on disk.
os.environ["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] = "1"

# cuBLAS needs it to be deterministic, before the device is first used.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import pytest
import torch

from tests.background import BACKGROUND

# Recipes need pydantic; a machine that lends its GPU alone may lack it.
collect_ignore = []
if importlib.util.find_spec("pydantic") is None:
    collect_ignore = ["train", "test_cli.py", "test_bench.py"]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests marked `gpu` are skipped where there is no CUDA device.

    SPARSEKERN_TEST_SHARD=i/n leaves one part of n; parametrised tests that differ in their last
    word alone stay together.
    """
    shard = os.environ.get("SPARSEKERN_TEST_SHARD")
    if shard is not None:
        number, count = map(int, shard.split("/"))
        others = [item for item in items if _group(item.nodeid) % count != number]
        config.hook.pytest_deselected(items=others)
        items[:] = [item for item in items if _group(item.nodeid) % count == number]
    if torch.cuda.is_available():
        return
    missing = pytest.mark.skip(reason=f"torch {torch.__version__} sees no CUDA device")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(missing)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Begins with the processes of the tests that are left after -k and -m."""
    if session.config.option.collectonly:
        return
    marked = [(item, item.get_closest_marker("background")) for item in session.items]
    commands = {
        item.nodeid: marker.kwargs["command"](**item.callspec.params)  # type: ignore[attr-defined]
        for item, marker in marked
        if marker is not None
    }
    BACKGROUND.start({name: each for name, each in commands.items() if each is not None})


def pytest_sessionfinish() -> None:
    """An interrupted session leaves nothing behind."""
    BACKGROUND.stop()


def _group(name: str) -> int:
    return zlib.crc32((name.rpartition("-")[0] or name).encode())


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Times measured by tests stay out of the user's cache, and that out of the tests."""
    os.environ["SPARSEKERN_CACHE_DIR"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def _repeatable() -> Iterator[None]:
    torch.manual_seed(0)
    # One thread unless a test asks for more: the suite's tensors are small, and threads that wait
    # for each other on a busy machine cost more than everything else.
    torch.set_num_threads(1)
    # torch's convolutions on a GPU: float32 means float32, and twice the same bits.
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.deterministic = True
    yield
    torch.set_num_threads(1)


@pytest.fixture
def poisoned_memory() -> Iterator[None]:
    """torch.empty is filled with NaN, so a kernel that forgets an element fails loudly."""
    # On a GPU some of torch's kernels have no deterministic form; only the NaN is wanted here.
    torch.use_deterministic_algorithms(True, warn_only=torch.cuda.is_available())
    yield
    torch.use_deterministic_algorithms(False)
