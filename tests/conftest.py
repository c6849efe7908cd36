"""Shared fixtures: repeatable randomness, NaN in uninitialised memory, torch's thread count."""

from __future__ import annotations

import os
from collections.abc import Iterator

# A graph compiled by an earlier build of this package must not be found in a cache on disk.
os.environ["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] = "1"

import pytest
import torch


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
    yield
    torch.set_num_threads(1)


@pytest.fixture
def poisoned_memory() -> Iterator[None]:
    """torch.empty is filled with NaN, so a kernel that forgets an element fails loudly."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
