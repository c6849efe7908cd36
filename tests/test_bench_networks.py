"""Suite `networks`: the sparse layers have the density, the ends are dense, rows make a table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from torch import nn

from bench import networks, table_texts
from bench.record import Recorder
from sparsekern.models import ResNet
from sparsekern.nn import SparseConv2d

IMAGE = (3, 8, 8)
SMALL = {
    "resnet20": networks.Case(
        lambda: ResNet(depth=20, width=0.25).network(IMAGE, 10, None), 2, IMAGE
    )
}


def test_layers_and_layouts(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[nn.Module] = []

    class Spy(networks.Pruner):
        def __init__(self, model: nn.Module, *args: Any, **options: Any) -> None:
            super().__init__(model, *args, **options)
            found.append(model)

    monkeypatch.setattr(networks, "Pruner", Spy)
    steps = networks.contenders(SMALL["resnet20"])
    assert set(steps) == {
        "dense_nchw",
        "dense_again",
        "dense_channels_last",
        *(f"{layout}_{d}" for layout in networks.SPARSE for d in networks.DENSITIES),
    }
    for step in steps.values():
        step()
    for model in found:
        layers = [each for each in model.modules() if isinstance(each, (nn.Conv2d, SparseConv2d))]
        assert isinstance(layers[0], nn.Conv2d)
        assert all(isinstance(each, SparseConv2d) for each in layers[1:])
        assert any(isinstance(each, nn.Linear) for each in model.modules())


def test_rows_make_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "NETWORKS", SMALL)
    recorder = Recorder(tmp_path, "green")
    recorder.common["commit"] = "0"  # the rows of a tree with changes make no table
    networks.run(recorder, Console(quiet=True), 0.0)
    table = table_texts.networks(tmp_path)
    assert table.count("ResNet-20") == len(networks.DENSITIES)
    row = table_texts.newest("networks", tmp_path)[0]
    layouts = row["p50_ms_by_layout"]
    assert row["p50_ms"] == min(layouts[name] for name in networks.SPARSE)
    assert row["dense_p50_ms"] == min(layouts[name] for name in networks.DENSE)


def test_share_of_the_peak(tmp_path: Path) -> None:
    """Forward rows over the ceiling measured before them, in the same run."""
    recorder = Recorder(tmp_path, "green")
    recorder.common["commit"] = "0"
    ceilings = {"fma_gflops": 100.0, "fma_from_l1_gflops": 80.0, "copy_gbps": 10.0}
    recorder.write(suite="ceilings", before="linear", **ceilings)
    common = {"suite": "linear", "variant": "sparsekern_csr", "shape": [1, 2, 3], "density": 0.2}
    recorder.write(**common, **{"pass": "forward"}, useful_gflops=60.0)
    recorder.write(**common, **{"pass": "forward_backward"}, useful_gflops=20.0)
    recorder.write(**common | {"variant": "dense"}, **{"pass": "forward"}, useful_gflops=40.0)
    table = table_texts.peak_share(tmp_path)
    assert "| 1 x 2 x 3 | 60 | 75 % | 40 | 50 % |" in table
    assert "25 %" not in table
