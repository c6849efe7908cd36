"""Begins with the runs under Triton's interpreter as soon as it is known that they are wanted."""

from __future__ import annotations

import pytest

from tests.kernels.interpreted import INTERPRETED


def pytest_collection_finish(session: pytest.Session) -> None:
    """Only for the tests that are left after -k and -m."""
    if session.config.option.collectonly:
        return
    wanted = [item for item in session.items if item.name.startswith("test_contract_under_the")]
    INTERPRETED.start(item.callspec.params["family"] for item in wanted)  # type: ignore[attr-defined]


def pytest_sessionfinish() -> None:
    """An interrupted session leaves nothing behind."""
    INTERPRETED.stop()
