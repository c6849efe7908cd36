"""Docstring examples run as tests."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest
import torch

import sparsekern as sk

MODULES = [
    m.name for m in pkgutil.walk_packages(sk.__path__, "sparsekern.") if not m.name.endswith("._C")
]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    module = importlib.import_module(name)
    failures, _ = doctest.testmod(module, extraglobs={"torch": torch, "sk": sk})
    assert failures == 0
