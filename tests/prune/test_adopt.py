"""A Pruner over a model that is sparse already."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import sparsekern as sk
from sparsekern.prune import GMP, SET, Method, Pruner, RigL, Static


def sparse_model(density: float = 0.3, **options: object) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4)
    )
    sk.sparsify(model, density, distribution="uniform", **options)
    return model


def prune(model: nn.Module, method: Method, **options: object) -> Pruner:
    return Pruner(
        model, torch.optim.SGD(model.parameters(), lr=0.1), method, total_steps=100, **options
    )


def masks(model: nn.Module) -> list[torch.Tensor]:
    return [m.mask() for m in model.modules() if isinstance(m, sk.nn.SparseLinear)]


def test_the_topology_is_the_start() -> None:
    model = sparse_model()
    before = masks(model)
    pruner = prune(model, RigL(density=0.3, update_every=2))
    assert all(torch.equal(a.mask(), b) for a, b in zip(pruner.layers, before, strict=True))
    assert pruner.density == pruner.report.density == pytest.approx(0.3, abs=1e-3)


@pytest.mark.parametrize("density", [0.9, 0.31, 0.1])
def test_another_density_is_refused(density: float) -> None:
    model = sparse_model()
    with pytest.raises(
        ValueError, match=f"Expected density of rigl to be that of the model, 0.3, .* Got {density}"
    ):
        prune(model, RigL(density=density))


def test_excluded_layers_keep_their_topology() -> None:
    model = sparse_model()
    before = masks(model)
    pruner = prune(model, SET(density=0.3, update_every=1), exclude=["2"])
    assert [layer.name for layer in pruner.layers] == ["0", "4"]
    (row,) = pruner.report.left_dense
    assert (row.names, row.reason) == (["2"], "sparse already, excluded by '2'")
    for _ in range(3):
        model(torch.randn(8, 32)).square().mean().backward()
        pruner.step()
    after = masks(model)
    assert torch.equal(before[1], after[1])
    assert not torch.equal(before[0], after[0])


def test_dense_layers_in_between() -> None:
    """They count as kept to the full unless they are excluded."""
    numel = 32 * 64 + 64 * 64
    model = sparse_model(exclude=["4"])
    pruner = prune(model, Static(density=0.3), exclude=["4"])
    assert [(row.names, row.reason) for row in pruner.report.left_dense] == [
        (["4"], "excluded by '4'")
    ]
    assert pruner.density == pytest.approx(0.3, abs=1e-3)
    mixed = (round(0.3 * numel) + 256) / (numel + 256)
    pruner = prune(model, Static(density=mixed))
    assert pruner.density == pytest.approx(mixed, abs=1e-3)
    assert [(row.names, row.format) for row in pruner.report.layers] == [
        (["0"], "csr"),
        (["2"], "csr"),
        (["4"], "dense"),
    ]
    with pytest.raises(ValueError, match="Expected density of static to be that of the model, 0.3"):
        prune(model, Static(density=0.3))


def test_what_sparsify_left_dense_counts_as_there() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(256, 256), nn.Linear(256, 4))
    report = sk.sparsify(model, 0.05)
    assert type(model[1]) is nn.Linear
    assert prune(model, RigL(density=0.05)).density == report.density


def test_when_all_sparse_layers_are_excluded_the_dense_ones_are_converted() -> None:
    model = sparse_model(exclude=["4"])
    pruner = prune(model, Static(density=0.5), exclude=["0", "2"])
    assert [layer.name for layer in pruner.layers] == ["4"]
    assert [row.names for row in pruner.report.left_dense] == [["0"], ["2"]]
    assert pruner.density == 0.5


def test_tied_layers_are_one() -> None:
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))
    model[1].weight = model[0].weight
    sk.sparsify(model, 0.5)
    assert [row.names for row in prune(model, Static(density=0.5)).report.layers] == [["0", "1"]]


def test_formats() -> None:
    model = sparse_model(0.1, format="csr")
    assert prune(model, Static(density=0.1), format="csr").layers
    with pytest.raises(
        ValueError, match="Expected format to be auto or 'csr', that of 0, .* Got 'masked'"
    ):
        prune(model, Static(density=0.1), format="masked")
    with pytest.raises(
        ValueError, match="to have a dense master, which gmp needs. Got format 'csr'"
    ):
        prune(model, GMP(density=0.1))
    with pytest.raises(ValueError, match="Expected exclude to name modules of the model. Got 'fc'"):
        prune(model, Static(density=0.1), exclude=["fc"])


def test_ramp_from_a_sparse_model() -> None:
    model = sparse_model(0.5, format="masked")
    pruner = prune(model, GMP(density=0.2, distribution="uniform", update_every=3))
    for _ in range(100):
        model(torch.randn(8, 32)).square().mean().backward()
        pruner.step()
        pruner.optimizer.zero_grad()
    assert pruner.density == pytest.approx(0.2, abs=1e-3)


def test_ramp_that_cannot_end_where_it_should() -> None:
    model = sparse_model(0.3, format="masked")
    with pytest.raises(
        ValueError, match=r"Expected density of gmp, spread by 'uniform', .* 0\.3\. Got 0\.4"
    ):
        prune(model, GMP(density=0.4, distribution="uniform"))
    model = sparse_model(0.3, format="masked", exclude=["4"])
    with pytest.raises(ValueError, match="Expected exclude to name .* Got a model in which 4 is"):
        prune(model, GMP(density=0.1))
