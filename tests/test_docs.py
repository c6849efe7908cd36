"""Docstring examples run as tests; what the pages say about the code is true."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest
import torch

import sparsekern as sk
from bench import tables

ROOT = Path(__file__).resolve().parent.parent
MODULES = [
    m.name for m in pkgutil.walk_packages(sk.__path__, "sparsekern.") if not m.name.endswith("._C")
]
# `path:line` and, on the same or the next line of text, `the code that stands there`.
REFERENCE = re.compile(r"`([\w./]+\.\w+):(\d+)`[^`]*?`([^`]+)`")


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    module = importlib.import_module(name)
    failures, _ = doctest.testmod(module, extraglobs={"torch": torch, "sk": sk})
    assert failures == 0


def test_walk_through_the_code() -> None:
    references = REFERENCE.findall((ROOT / "CONTRIBUTING.md").read_text("utf-8"))
    assert len(references) >= 15
    wrong = []
    for path, number, code in references:
        lines = (ROOT / path).read_text("utf-8").splitlines()
        if code not in lines[int(number) - 1]:
            right = [i for i, line in enumerate(lines, 1) if code in line]
            wrong.append(f"{path}:{number} `{code}` is in line {right}")
    assert not wrong, "\n".join(wrong)


def test_pages_are_generated_from_the_results() -> None:
    pages = [page.read_text("utf-8") for page in tables.PAGES]
    assert sum(page.count("<!-- table:") for page in pages) == len(tables.TABLES)
    for page in pages:
        assert tables.fill(page) == page, "run `python -m bench.tables`"


def test_readme_names_files_that_exist() -> None:
    for page in ("README.md", "CONTRIBUTING.md", "docs/benchmarks.md", "docs/gpu.md"):
        for target in re.findall(r"\]\(([^)#:]+)\)", (ROOT / page).read_text("utf-8")):
            assert ((ROOT / page).parent / target).exists(), f"{page} links to {target}"


def test_readme_example_runs() -> None:
    """The first Python block, on a few random batches."""
    readme = (ROOT / "README.md").read_text("utf-8")
    code = re.findall(r"```python\n(.*?)```", readme, flags=re.DOTALL)[0]
    loader = [(torch.randn(8, 784), torch.randint(10, (8,))) for _ in range(3)]
    names: dict[str, object] = {"loader": loader}
    exec(code, names)
    pruner = names["pruner"]
    assert isinstance(pruner, sk.Pruner)
    assert pruner.steps == 3
    assert pruner.density == pytest.approx(0.05, abs=1e-3)
