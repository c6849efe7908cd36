"""``sk.explain``: a row for every layer, with times only where something was measured."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import sparsekern as sk
from sparsekern.nn import SparseLinear, measure
from tests.nn.test_measure import same, state_of


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(measure, "SECONDS", 0.0)
    monkeypatch.setenv("SPARSEKERN_CACHE_DIR", str(tmp_path))


class Model(nn.Module):
    """Sparse, excluded, too dense, convolution and odd layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3)
        self.hidden = nn.Linear(18, 40)
        self.head = nn.Linear(40, 4)
        self.unused = nn.Linear(5, 5)
        self.odd = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.odd(self.head(self.hidden(self.conv(x).flatten(1)).relu()))


@pytest.fixture
def model() -> Model:
    model = Model()
    sk.sparsify(model, density=0.2, distribution="uniform", exclude=["head", "conv"])
    return model


X = torch.randn(6, 1, 5, 5)


def test_without_times_the_rule_is_named(model: Model) -> None:
    explanation = sk.explain(model)
    rows = {row.names[0]: row for row in explanation.rows}
    assert list(rows) == ["conv", "hidden", "head", "unused", "odd"]
    assert all(row.ms is None and row.ms_dense is None for row in rows.values())
    hidden = rows["hidden"]
    assert (hidden.format, hidden.variant, hidden.shape) == (
        "csr",
        model.hidden.format.running,
        (40, 18),
    )
    assert hidden.density == pytest.approx(0.2)
    assert hidden.bytes == model.hidden.format.nbytes.total
    assert hidden.bytes_dense == 40 * 18 * 4
    assert hidden.why == "rule: csr up to density 0.4 on cpu"
    head = rows["head"]
    assert (head.format, head.variant, head.density, head.bytes) == ("dense", "torch", 1.0, 640)
    assert head.why == "excluded by 'head'"
    assert rows["odd"].why.startswith("its weight is computed from others")
    text = str(explanation)
    assert text.splitlines()[0].split() == [
        *("layer", "shape", "format", "variant", "density", "ms", "ms", "dense"),
        *("bytes", "bytes", "dense", "why"),
    ]
    assert text.splitlines()[-1] == (
        f"together: {sum(r.bytes for r in rows.values()):,} bytes, "
        f"dense {sum(r.bytes_dense for r in rows.values()):,}"
    )
    assert len(text.splitlines()) == 7
    assert " - " in text


def test_all_weights_kept_and_never_converted() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    assert {row.why for row in sk.explain(model).rows} == {"not converted"}
    sk.sparsify(model, density=1.0)
    assert {row.why for row in sk.explain(model).rows} == {"all weights kept"}


def test_a_pruner_leaves_reasons_too() -> None:
    model = nn.Sequential(nn.Linear(30, 30), nn.Linear(30, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sk.Pruner(model, optimizer, sk.prune.SET(density=0.2), total_steps=9, exclude=["1"])
    assert sk.explain(model).rows[1].why == "excluded by '1'"


def test_with_an_example_everything_is_timed(model: Model) -> None:
    before = state_of(model)
    explanation = sk.explain(model, X)
    assert same(state_of(model), before)
    rows = {row.names[0]: row for row in explanation.rows}
    assert model.hidden.format.variant == "auto"
    assert model.hidden.format.measured is None
    for name in ("conv", "hidden", "head", "odd"):
        assert rows[name].ms > 0
        assert rows[name].ms_dense > 0
    assert rows["head"].ms == rows["head"].ms_dense
    assert rows["unused"].ms is None
    assert rows["hidden"].why.startswith("rule: csr")
    assert " ms, dense " in str(explanation).splitlines()[-1]
    forward = sk.explain(model, X, training=False, cache=False)
    assert {row.names[0] for row in forward.rows if row.ms} == {"conv", "hidden", "head", "odd"}


def test_after_tune_the_plan_is_told(model: Model) -> None:
    plan = sk.tune(model, X)
    row = next(row for row in sk.explain(model).rows if row.names == ("hidden",))
    entry = plan["hidden"]
    assert (row.ms, row.ms_dense) == (
        entry.times_ms[entry.variant],
        entry.times_ms["dense_layer"],
    )
    assert row.variant == entry.variant
    assert row.why == entry.why
    model.hidden.format.set_mask(torch.rand(40, 18) < 0.5)
    stale = next(row for row in sk.explain(model).rows if row.names == ("hidden",))
    assert stale.ms is None
    assert stale.why.endswith("was measured at density 0.2")
    model.hidden.format.variant = "dense"
    asked = next(row for row in sk.explain(model).rows if row.names == ("hidden",))
    assert asked.why.startswith("asked for; rule")


def test_wrapped_and_bare_models(model: Model) -> None:
    assert sk.explain(torch.compile(model, backend="eager")).rows == sk.explain(model).rows
    layer = SparseLinear(8, 8, density=0.2)
    assert str(sk.explain(layer)).splitlines()[1].startswith("(model)")
    assert sk.explain(nn.ReLU()).rows == []
    assert str(sk.explain(nn.ReLU())).endswith("together: 0 bytes, dense 0")


def test_tied_dense_layers_are_one_row() -> None:
    first, second = nn.Linear(3, 3), nn.Linear(3, 3)
    second.weight = first.weight
    model = nn.Sequential(first, second, first)
    (row,) = sk.explain(model, torch.randn(2, 3)).rows
    assert row.names == ("0", "1", "2")
    assert row.bytes == 36
