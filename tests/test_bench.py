"""The benchmarks cover what is registered, and their suites measure what they say."""

from __future__ import annotations

import copy
import itertools
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from bench import (
    activation,
    block,
    changes,
    conv2d,
    linear,
    memory,
    optimizer,
    step,
    table_texts,
    topology,
)
from bench.kernel_samples import SAMPLES, sample
from bench.record import Recorder
from bench.run import SUITES
from bench.test_kernels import REFERENCE, cases
from bench.timing import Times
from sparsekern._extension import native
from sparsekern.nn import FusedSequential
from sparsekern.ops import OPS
from sparsekern.testing import has_gradient

ROOT = Path(__file__).resolve().parent.parent
CPU = torch.device("cpu")


def test_every_op_and_variant_is_timed() -> None:
    found = {(case.op, case.variant, case.which) for case in cases()}
    for name in OPS:
        op = OPS[name]
        for variant in op.variants or ("auto", REFERENCE):
            assert (name, variant, "forward") in found
            assert ((name, variant, "forward_backward") in found) == has_gradient(op)
    assert {case.op for case in cases()} == set(OPS)


def test_samples_belong_to_ops_and_pass_their_checks() -> None:
    assert set(SAMPLES) <= set(OPS)
    for name in OPS:
        chosen = sample(OPS[name], CPU)
        OPS[name].check(*chosen.args, **chosen.kwargs)
        cost = OPS[name].cost(*chosen.args, **chosen.kwargs)
        assert cost.bytes_read > 0


def test_an_op_without_a_sample_is_timed_on_its_largest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(SAMPLES, "mask_topk")
    assert sample(OPS["mask_topk"], CPU).id == "long_among"


def test_pytest_benchmark_runs_them() -> None:
    """As `make bench-kernels` does, each once instead of timed."""
    command = [sys.executable, "-m", "pytest", "-q", "bench/test_kernels.py", "--benchmark-disable"]
    result = subprocess.run(
        [*command, "-k", "csr_gather or csr_linear-"], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout[-2000:]
    wanted = [case for case in cases() if case.op in ("csr_gather", "csr_linear")]
    not_here = {"triton"} if native.loaded else {"triton", "panel"}
    runs = [case for case in wanted if case.device.type == "cuda" or case.variant not in not_here]
    assert f"{len(runs)} passed" in result.stdout


def test_known_suites() -> None:
    assert list(SUITES) == [
        "linear",
        "small_batch",
        "block",
        "activation",
        "conv2d",
        "topology",
        "changes",
        "step",
        "networks",
        "optimizer",
        "memory",
        "never_slower",
        "train",
    ]


def test_memory_counts_what_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By hand: AdamW keeps a step count of 4 bytes a tensor and two moments."""
    dense, x = nn.Sequential(nn.Linear(32, 16)), torch.randn(2, 32)
    whole = memory.trained(copy.deepcopy(dense), x)
    numbers = 32 * 16 + 16
    assert whole == memory.Held(4 * numbers, 4 * numbers, 8 * numbers + 8, 0)
    own = memory.trained(memory.sparse("", dense, 0.25, "csr"), x)
    kept = 32 * 16 // 4 + 16
    assert (own.weights, own.gradients, own.state) == (4 * kept, 4 * kept, 8 * kept + 8)
    stored = memory.sparse("", dense, 0.25, "csr").get_submodule("0.format")
    assert own.indices == sum(buffer.nbytes for buffer in stored.buffers())
    blocks = memory.trained(memory.sparse("", dense, 0.5, "bsr"), x)
    assert blocks.weights == 4 * (32 * 16 // 2 + 16)
    monkeypatch.setattr("bench.record.commit", lambda: "abc")
    recorder = Recorder(tmp_path, "green")
    for density, ratio in ((0.5, 0.9), (0.1, 0.2)):
        recorder.write(suite="memory", op="net", variant="csr", density=density, of_dense=ratio)
    lines = table_texts.memory(tmp_path).splitlines()
    assert lines[0] == "| bytes over dense | density 0.50 | density 0.10 |"
    assert lines[2] == "| net, csr | 0.900x | 0.200x |"


def test_block_contenders_do_what_they_say() -> None:
    case = block.Case(3, 64, 128, 0.25)
    layers = block.contenders(case)
    assert list(layers)[:3] == ["dense", "dense_again", "sparsekern_csr"]
    for shape in block.BLOCKS:
        layer = layers[block.name_of(shape)]
        assert layer.format.block_shape == shape
        assert layer.density == pytest.approx(0.25)


def test_block_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block, "SHAPES", ((2, 32, 64),))
    recorder = Recorder(tmp_path, "green")
    block.run(recorder, Console(quiet=True), 0.0)
    rows = [json.loads(line) for line in recorder.path.read_text().splitlines()]
    assert len(rows) == 3 * 2 * 8  # densities, passes, contenders
    assert {row["pattern"] for row in rows} == {
        "unstructured",
        *("4x4", "8x8", "16x16", "32x32", "1x16"),
    }
    for row in rows:
        dense = next(
            r
            for r in rows
            if r["variant"] == "dense" and all(r[k] == row[k] for k in ("pass", "density"))
        )
        ratio = dense["p50_ms"] / row["p50_ms"]
        assert row["speedup_over_dense"] == pytest.approx(ratio, rel=1e-2)


def test_activation_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activation, "LINEAR", ((2, 32, 64),))
    monkeypatch.setattr(activation, "CONV2D", ((40, 16, 4, 3),))
    for name, case in itertools.product(activation.ACTIVATIONS, activation.cases()):
        models, x = activation.contenders(case, name), case.input()
        assert type(models[name]) is nn.Sequential
        assert type(models[f"{name}_fused"]) is FusedSequential
        torch.testing.assert_close(models[name](x), models[f"{name}_fused"](x))
    recorder = Recorder(tmp_path, "green")
    activation.run(recorder, Console(quiet=True), 0.0)
    rows = [json.loads(line) for line in recorder.path.read_text().splitlines()]
    assert len(rows) == 3 * 3 * 4 * 3  # densities, passes, activations, contenders
    assert {row["pass"] for row in rows if row["op"] == "linear"} == {"forward"}
    two_calls = [row for row in rows if row["variant"] in ("none", *activation.ACTIVATIONS)]
    assert {row["speedup_over_two_calls"] for row in two_calls} == {1.0}


def test_conv2d_compares_with_the_better_dense(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = conv2d.Shape(4, 6, 5)
    for name in ("SHAPES", "MAIN"):
        monkeypatch.setattr(conv2d, name, (shape,))
    monkeypatch.setattr(conv2d, "BATCH", 2)
    monkeypatch.setattr(conv2d, "_sparseprop", lambda *_: None)  # it may be installed here
    recorder = Recorder(tmp_path, "green")
    conv2d.run(recorder, Console(quiet=True), 0.0)
    rows = [json.loads(line) for line in recorder.path.read_text().splitlines()]
    assert len(rows) == 4 * 2 * 5  # densities, passes, contenders
    for density in (0.2, 0.01):
        own = {
            row["variant"]: row
            for row in rows
            if row["density"] == density and row["pass"] == "forward"
        }
        best = min(own[name]["p50_ms"] for name in conv2d.DENSE)
        speedup = best / own["sparsekern_csr"]["p50_ms"]
        assert own["sparsekern_csr"]["speedup_over_dense"] == pytest.approx(speedup, rel=1e-2)


@pytest.mark.parametrize("optimizer", list(topology.OPTIMIZERS))
@pytest.mark.parametrize(("kind", "shape"), [("linear", (48, 32)), ("conv2d", (16, 10, 4))])
def test_topology_contenders_do_what_they_say(
    kind: str, shape: tuple[int, ...], optimizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = topology.Case(kind, shape, 0.2, optimizer)
    layer, x = case.make()
    monkeypatch.setattr(topology.Case, "make", lambda _: (layer, x))
    runs = topology.contenders(case)
    assert list(runs) == [
        *("training_step", "dense_training_step", "topology"),
        *("topk", "set_mask", "move_state"),
    ]
    before = layer.format.parameter.detach().clone()
    runs["training_step"]()
    assert not torch.equal(layer.format.parameter, before)
    kept: list[Tensor] = []
    for _ in range(2):
        runs["topology"]()
        kept.append(layer.mask())
    changed = (kept[0] & ~kept[1]).sum() / kept[0].sum()
    assert 0.1 < changed < 0.5
    assert layer.format.nnz == round(0.2 * layer.format.numel)
    layer.format.validate()


def test_changes_of_networks_change_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every contender does what it is called, and the rows make a table."""
    networks: dict[str, Callable[[], Any]] = {
        "mlp": lambda: (
            torch.nn.Sequential(torch.nn.Linear(40, 32), torch.nn.Linear(32, 24)),
            torch.randn(8, 40),
        )
    }
    monkeypatch.setattr(changes, "NETWORKS", networks)
    monkeypatch.setattr(changes, "DENSITIES", (0.2,))
    monkeypatch.setattr(changes, "MANY", 30)
    found: list[changes.Pruner] = []

    class Spy(changes.Pruner):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            found.append(self)

    monkeypatch.setattr(changes, "Pruner", Spy)
    runs = changes.contenders("mlp", 0.2)
    assert list(runs) == ["dense_training_step", "training_step", "scores_given", "rigl", "set"]
    rigl, other = found
    for name, pruner in (("scores_given", rigl), ("rigl", rigl), ("set", other)):
        before = [layer.mask() for layer in pruner.layers]
        runs[name]()
        for layer, mask in zip(pruner.layers, before, strict=True):
            assert int((layer.mask() ^ mask).sum()) > 0.2 * int(mask.sum())
            layer.format.validate()
    recorder = Recorder(tmp_path, "green")
    recorder.common["commit"] = "0"  # the rows of a tree with changes make no table
    changes.run(recorder, Console(quiet=True), 0.0)
    table = table_texts.changes(tmp_path)
    assert len(table.splitlines()) == 2 + 3 + 3 + 2  # head, network, matrix, foot
    assert "RigL's update" in table


@pytest.mark.parametrize("model", list(step.MODELS))
def test_step_contenders_train(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sparse twin's layers all have the density, and every contender takes whole steps."""
    small: dict[str, Callable[[], Any]] = {
        "mlp": lambda: (
            torch.nn.Sequential(torch.nn.Linear(20, 16), torch.nn.Linear(16, 4)),
            torch.randn(8, 20),
            torch.randn(8, 4),
        ),
        "transformer": lambda: (
            step.Block(16, 32),
            torch.randn(2, 5, 16),
            torch.randn(2, 5, 16),
        ),
    }
    monkeypatch.setattr(step, "MODELS", small)
    pruners = []
    build = step.Pruner

    def remember(*args: Any, **kwargs: Any) -> Any:
        pruners.append(build(*args, **kwargs))
        return pruners[-1]

    monkeypatch.setattr(step, "Pruner", remember)
    runs = step.contenders(step.Case(model, "sgd", 0.25))
    assert list(runs) == ["dense", "dense_again", "sparsekern_csr"]
    (pruner,) = pruners
    assert all(row.density == pytest.approx(0.25, abs=0.02) for row in pruner.report.layers)
    assert not pruner.report.left_dense
    before = [p.detach().clone() for p in pruner.model.parameters()]
    for run in runs.values():
        run()
    assert pruner.steps == 1
    after = list(pruner.model.parameters())
    assert any(not torch.equal(a, b) for a, b in zip(after, before, strict=True))


def _times(milliseconds: float) -> Times:
    return Times(*(1e-3 * milliseconds * factor for factor in (0.9, 1.0, 1.1)), rounds=7)


def _rows(folder: Path) -> list[dict[str, Any]]:
    (file,) = folder.rglob("*.jsonl")
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_rows_and_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From measured times to the rows and to the tables of the README, worked by hand."""
    monkeypatch.setattr("bench.record.commit", lambda: "abc")
    recorder = Recorder(tmp_path, "green")
    change = {"training_step": 4.0, "topology": 1.0, "topk": 0.5, "set_mask": 0.3}
    for size, factor in ((8, 1.0), (16, 4.0)):
        case = topology.Case("linear", (size, size), 0.1, "sgd")
        for name, ms in change.items():
            times = _times(ms * (factor if name == "topology" else 1.0))
            steps = {"training_step": _times(4.0), "dense_training_step": _times(8.0)}
            recorder.write(**topology._row(case, name, times, steps))
    for density, ms in ((0.2, 2.0), (0.1, 1.0)):
        case = step.Case("mlp", "sgd", density)
        for name, value in (("dense", 4.0), ("dense_again", 4.0), ("sparsekern_csr", ms)):
            recorder.write(**step._row(case, name, _times(value), _times(4.0)))
    rows = _rows(tmp_path)
    assert len(rows) == 14
    assert (rows[1]["of_a_step"], rows[1]["of_a_dense_step"]) == (0.25, 0.125)
    assert rows[1]["shape"] == [128, 8, 8]
    assert table_texts.topology(tmp_path).splitlines()[0] == (
        "| topology change / training step | density 0.10 |"
    )
    assert "| linear, sgd | 0.50 |" in table_texts.topology(tmp_path)  # of 0.25 and 1
    whole = table_texts.speedups("step", "sgd")(tmp_path)
    assert "| sgd | density 0.20 | density 0.10 |" in whole
    assert "| **sparsekern** | 2.00x | 4.00x |" in whole


def test_every_case_of_the_issue_is_there() -> None:
    assert {case.density for case in topology.cases()} == set(linear.DENSITIES)
    assert {case.kind for case in topology.cases()} == {"linear", "conv2d"}
    assert str(next(topology.cases())) == "linear 1024->1024"
    assert str(topology.Case("conv2d", (64, 64, 32), 0.1, "sgd")) == "conv2d 64->64, 32x32"
    assert {case.density for case in step.cases()} == {0.2, 0.1, 0.05, 0.01}
    assert {case.optimizer for case in step.cases()} == {"sgd", "adamw"}
    assert {case.model for case in step.cases()} == {"mlp", "transformer"}


@pytest.mark.parametrize("name", list(optimizer.OPTIMIZERS))
def test_optimizer_contenders_take_the_same_steps(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rival with masks and ours agree on every weight; compact values have the kept number."""
    made: list[list[torch.nn.Parameter]] = []
    build = optimizer.parameters

    def remember(size: int, device: torch.device) -> list[torch.nn.Parameter]:
        torch.manual_seed(size)
        made.append(build(size, device))
        return made[-1]

    monkeypatch.setattr(optimizer, "parameters", remember)
    options = {**optimizer.OPTIMIZERS[name][2], "lr": 0.1}
    row = (*optimizer.OPTIMIZERS[name][:2], options, 28)
    monkeypatch.setattr(optimizer, "OPTIMIZERS", {name: row})
    runs = optimizer.contenders(optimizer.Case(name, 2000, 0.1))
    for run in runs.values():
        run(), run()
    rival, fused, _, ours, *_ = made
    for p, q, r in zip(ours, rival, fused, strict=True):
        torch.testing.assert_close(p, q)
        assert 0.02 < (p != 0).float().mean() < 0.2
        assert not torch.equal(q, r)
    sizes = {sum(p.numel() for p in group) for group in made[4:]}
    assert all(abs(size - int((torch.cat(list(ours)) != 0).sum())) < 10 for size in sizes)


def test_optimizer_rows_and_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """10 ms with masks, 4 without: worked by hand."""
    monkeypatch.setattr("bench.record.commit", lambda: "abc")
    recorder = Recorder(tmp_path, "green")
    all_ = {"fused_and_masks": 10.0, "fused": 4.0, "fused_again": 4.0, "masked": 5.0}
    times = {n: _times(ms) for n, ms in (all_ | {"compact": 1.0, "compact_fused": 2.0}).items()}
    for name, each in times.items():
        recorder.write(**optimizer._row(optimizer.Case("adamw", 10**7, 0.1), name, each, times))
    rows = {row["variant"]: row for row in _rows(tmp_path)}
    assert rows["masked"]["speedup_over_fused_and_masks"] == 2
    assert rows["masked"]["speedup_over_fused"] == 0.8
    assert rows["masked"]["least_gbps"] == 56  # 280 MB in 5 ms
    assert rows["compact"]["least_gbps"] == 28
    table = table_texts.optimizer("adamw")(tmp_path)
    assert "| 10M, **sparsekern**, dense state | 2.00x |" in table
    assert "| 10M, torch fused, compact values | 5.00x |" in table
    assert {case.density for case in optimizer.cases()} == {0.5, 0.1, 0.01}
    assert {case.weights for case in optimizer.cases()} == {10**7, 5 * 10**7}
