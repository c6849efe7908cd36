"""``sk.tune``: measures, chooses, and changes nothing else."""

from __future__ import annotations

import copy
import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import sparsekern as sk
from sparsekern._extension import native
from sparsekern.nn import SparseLinear, measure
from sparsekern.nn.measure import Call, Times
from sparsekern.nn.tune import cache_key
from sparsekern.testing import run_on_ranks
from tests.nn.test_measure import same, state_of

tune_module = sys.modules["sparsekern.nn.tune"]
Timer = Callable[[nn.Module, Call, bool], Times]


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(measure, "SECONDS", 0.0)
    monkeypatch.setenv("SPARSEKERN_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache" / "times.json"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[tuple[nn.Module, Call]]]:
    """``clock(forward={...}, forward_backward={...})`` says what is measured from now on, and
    returns the list of what is asked for."""

    def set_to(**times: dict[str, float]) -> list[tuple[nn.Module, Call]]:
        asked: list[tuple[nn.Module, Call]] = []

        def time_layer(layer: nn.Module, call: Call, training: bool) -> Times:
            asked.append((layer, call))
            return {key: ms for key, ms in times.items() if training or key == "forward"}

        monkeypatch.setattr(tune_module, "time_layer", time_layer)
        return asked

    return set_to


PANEL = {"panel": 1.0, "dense": 2.0, "dense_layer": 3.0}
DENSE = {"panel": 4.0, "dense": 2.0, "dense_layer": 1.5}


def two_layers(**options: object) -> nn.Sequential:
    layers = [SparseLinear(8, 8, density=0.25, format="csr", **options) for _ in range(2)]
    return nn.Sequential(layers[0], nn.ReLU(), layers[1])


def test_the_fastest_of_forward_and_backward_together(clock: Callable[..., object]) -> None:
    clock(forward=PANEL, forward_backward=DENSE)
    model, x = two_layers(), torch.randn(4, 8)
    plan = sk.tune(model, x, cache=False)
    assert [layer.format.variant for layer in (model[0], model[2])] == ["dense", "dense"]
    assert plan.training
    entry = plan["0"]
    assert (entry.names, entry.shape, entry.format) == (("0",), (8, 8), "csr")
    assert (entry.forward_ms, entry.forward_backward_ms) == (PANEL, DENSE)
    assert entry.inputs == ("float32[4, 8]",)
    assert entry.why == (
        "measured: dense 2 ms, panel 4 ms; 0.5 ms slower than a plain layer, for scattering values"
    )
    assert plan.machine["torch"] == torch.__version__
    inference = sk.tune(model, x, training=False, cache=False)
    assert [layer.format.variant for layer in (model[0], model[2])] == ["panel", "panel"]
    assert (inference.training, inference["0"].forward_backward_ms) == (False, {})


def test_a_dense_master_runs_dense_where_that_wins(clock: Callable[..., object]) -> None:
    layer = SparseLinear(8, 8, density=0.1, format="masked")
    assert layer.format.running == "csr"
    clock(forward={"dense": 1.0, "csr": 2.0, "dense_layer": 1.0})
    assert sk.tune(layer, torch.randn(2, 8)).layers[0].why == "measured: dense 1 ms, csr 2 ms"
    assert layer.format.running == "dense"
    parameter = layer.format.parameter
    clock(forward={"dense": 1.0, "csr": 0.5, "dense_layer": 1.0})
    sk.tune(layer, torch.randn(3, 8))
    assert layer.format.running == "csr"
    assert layer.format.parameter is parameter


@pytest.mark.parametrize("format", ["csr", "masked"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_nothing_else_changes(format: str, dtype: torch.dtype) -> None:
    """With real times: any variant may win, and outputs stay those of the layer."""
    torch.manual_seed(1)
    layers = [SparseLinear(8, 8, density=0.5, format=format, dtype=dtype) for _ in range(2)]
    model = nn.Sequential(layers[0], nn.BatchNorm1d(8, dtype=dtype), nn.Dropout(), layers[1])
    x = torch.randn(6, 8, dtype=dtype)
    model(x).sum().backward()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before, weights = state_of(model), [layer.weight.detach() for layer in layers]
    shapes = [parameter.shape for parameter in optimizer.param_groups[0]["params"]]
    keys = list(model.state_dict())
    plan = sk.tune(model, x)
    assert len(plan.layers) == 2
    after = state_of(model)
    if format == "masked":  # its index is there or not, as the kernel needs it
        before[0], after[0] = before[0][-4:], after[0][-4:]
    assert same(after, before)
    assert [p.shape for p in optimizer.param_groups[0]["params"]] == shapes
    assert list(model.state_dict()) == keys
    assert [layer.format.name for layer in layers] == [format] * 2
    for layer, weight, entry in zip(layers, weights, plan, strict=True):
        assert layer.format.variant == entry.variant != "auto"
        right = nn.functional.linear(x, weight, layer.bias)
        torch.testing.assert_close(layer(x), right)


@pytest.mark.parametrize("format", ["csr", "masked"])
def test_convolutions(format: str) -> None:
    """Nothing in tune knows them: any module with a format is measured as it is called."""
    conv = nn.Conv2d(6, 8, 3, stride=2, padding=1, groups=2, padding_mode="circular", bias=False)
    layer = sk.nn.SparseConv2d.from_dense(conv, density=0.2, format=format)
    x = torch.randn(2, 6, 7, 7).to(memory_format=torch.channels_last)
    (entry,) = sk.tune(nn.Sequential(layer, nn.ReLU()), x).layers
    assert entry.shape == (8, 3, 3, 3)
    assert entry.inputs == ("float32[2, 6, 7, 7]",)
    assert layer.format.variant == entry.variant
    assert entry.variant in layer.format.variants
    able = set(layer.format.variants) - (set() if native.loaded else {"patch"})
    assert set(entry.forward_backward_ms) >= {*able, "dense_layer"}
    torch.testing.assert_close(layer(x), layer.to_dense()(x))


def test_calls_of_tied_layers_add_up(clock: Callable[..., list[tuple[nn.Module, Call]]]) -> None:
    first = SparseLinear(8, 8, density=0.25, format="csr")
    tied = SparseLinear.from_format(first.format)
    model = nn.Sequential(first, first, tied)
    asked = clock(forward={"panel": 1.0, "dense": 2.0, "dense_layer": 3.0})
    plan = sk.tune(model, torch.randn(4, 8))
    (entry,) = plan.layers
    assert entry.names == ("0", "1", "2")
    assert entry.inputs == ("float32[4, 8]",) * 3
    assert entry.forward_ms == {"panel": 3.0, "dense": 6.0, "dense_layer": 9.0}
    # The first call needs no gradient of its input; the tied layer has no bias.
    assert [call.requires_grad for _, call in asked] == [False, True, True]
    assert sk.explain(model).rows[0].why.startswith("tied; measured")


def test_a_variant_must_run_every_call(monkeypatch: pytest.MonkeyPatch) -> None:
    def time_layer(layer: nn.Module, call: Call, training: bool) -> Times:
        panel = {} if call.shape[0] == 2 else {"panel": 0.1}
        return {"forward": {**panel, "dense": 1.0, "dense_layer": 1.0}}

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = SparseLinear(8, 8, density=0.25, format="csr")

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) + self.layer(x[:2]).sum()

    monkeypatch.setattr(tune_module, "time_layer", time_layer)
    plan = sk.tune(Twice(), torch.randn(4, 8), cache=False)
    assert plan["layer"].forward_ms == {"dense": 2.0, "dense_layer": 2.0}
    assert plan["layer"].variant == "dense"


def test_layers_that_are_not_reached(clock: Callable[..., object]) -> None:
    clock(forward=DENSE)
    model = two_layers()
    model[0].format.variant = "dense"
    unreached = nn.ModuleDict({"used": model, "unused": SparseLinear(3, 3, format="csr")})
    unreached.forward = lambda x: model(x)  # type: ignore[method-assign]
    plan = sk.tune(unreached, torch.randn(4, 8))
    entry = plan["unused"]
    assert entry.variant == "auto"
    assert entry.why == "not reached by the example: the fixed rule"
    assert (entry.inputs, entry.forward_ms) == ((), {})
    row = next(row for row in sk.explain(unreached).rows if row.names == ("unused",))
    assert (row.ms, row.why) == (None, entry.why)


def test_nothing_runs_here(clock: Callable[..., object]) -> None:
    clock(forward={"dense_layer": 1.0})
    model = two_layers()
    assert sk.tune(model, torch.randn(4, 8))["0"].why == "no variant runs here: the fixed rule"
    assert model[0].format.variant == "auto"


def test_equal_layers_are_measured_once(
    clock: Callable[..., list[tuple[nn.Module, Call]]],
) -> None:
    asked = clock(forward=PANEL)
    model = two_layers()
    model = nn.Sequential(*[copy.deepcopy(model) for _ in range(3)])
    sk.tune(model, torch.randn(4, 8), cache=False)
    assert len(asked) == 2  # the first layer needs no gradient of its input


def test_times_are_kept_on_disk(
    clock: Callable[..., list[tuple[nn.Module, Call]]], cache: Path
) -> None:
    asked = clock(forward=DENSE, forward_backward=DENSE)
    model, x = two_layers(), torch.randn(4, 8)
    plan = sk.tune(model, x)
    assert len(asked) == 2
    assert sk.tune(copy.deepcopy(model), x) == plan
    assert len(asked) == 2
    for changed in (x[:3], x.double()):
        fresh = two_layers(dtype=changed.dtype)
        sk.tune(fresh, changed)
    assert len(asked) == 6
    sk.tune(model, x, training=False)
    sk.tune(model, x, cache=False)
    assert len(asked) == 9  # forward alone, the two layers are called alike
    assert len(json.loads(cache.read_text())["times"]) == 7


def test_without_the_cache_no_file_is_touched(clock: Callable[..., object], cache: Path) -> None:
    clock(forward=PANEL)
    sk.tune(two_layers(), torch.randn(4, 8), cache=False)
    assert not cache.parent.exists()


def test_a_damaged_cache_is_ignored(clock: Callable[..., object], cache: Path) -> None:
    clock(forward=PANEL)
    cache.parent.mkdir()
    cache.write_text("{")
    with pytest.warns(UserWarning, match="sparsekern measures anew, ignoring the times in"):
        plan = sk.tune(two_layers(), torch.randn(4, 8))
    assert plan["0"].forward_ms == PANEL


def test_what_times_depend_on() -> None:
    """Each of these gives another key; weights and names do not."""
    call = Call.of(torch.randn(4, 8))
    mask = torch.rand(8, 8) < 0.25
    linear = nn.Linear(8, 8)

    def layer(format: str = "csr", kept: Tensor = mask, **changes: object) -> SparseLinear:
        made = SparseLinear.from_dense(linear, mask=kept, format=format)
        for name, value in changes.items():
            setattr(made.format, name, value)
        return made

    key = cache_key(layer(), call, True)
    assert key == cache_key(layer(kept=mask.flip(0)), call, True)
    keys = [
        key,
        cache_key(layer(), call, False),
        cache_key(layer("masked"), call, True),
        cache_key(layer(kept=torch.rand(8, 8) < 0.75), call, True),
        cache_key(layer().double(), call, True),
        cache_key(layer().requires_grad_(False), call, True),
        cache_key(SparseLinear.from_format(layer().format), call, True),
        cache_key(layer(), Call.of(torch.randn(5, 8)), True),
        cache_key(layer(), Call.of(torch.randn(8, 4).t()), True),
        cache_key(layer(), Call.of(torch.randn(4, 8).bfloat16()), True),
        cache_key(layer(), dataclasses.replace(call, requires_grad=True), True),
        cache_key(linear, call, True),
    ]
    torch.set_num_threads(2)
    keys.append(cache_key(layer(), call, True))
    torch.set_num_threads(1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        keys.append(cache_key(layer(), call, True))
    assert len(set(keys)) == len(keys)
    assert torch.__version__ in key
    assert sk.__version__ in key


def test_a_model_without_sparse_layers() -> None:
    with pytest.raises(ValueError, match="Expected a model with sparse layers. Got none"):
        sk.tune(nn.Linear(3, 3), torch.randn(2, 3))


@pytest.mark.parametrize("slow", ["panel", "dense"])
def test_no_time_decides_a_format(slow: str, clock: Callable[..., object]) -> None:
    """Whatever is measured, formats and shapes are the rule's."""
    clock(forward={"panel": 2.0, "dense": 2.0, "dense_layer": 0.1, slow: 9.0})
    model = nn.Sequential(nn.Linear(30, 30), nn.Linear(30, 30))
    x = torch.randn(4, 30)
    report = sk.sparsify(model, density=0.2, distribution="uniform", example=x)
    assert [layer.format.name for layer in model] == ["csr", "csr"]
    assert [layer.format.parameter.shape for layer in model] == [(180,), (180,)]
    assert report.plan is not None
    assert {each.variant for each in report.plan} == {"dense" if slow == "panel" else "panel"}


def test_sparsify_measures_only_with_an_example(clock: Callable[..., list[object]]) -> None:
    asked = clock(forward=PANEL)
    model = nn.Sequential(nn.Linear(30, 30), nn.Linear(30, 30))
    assert sk.sparsify(model, density=0.2).plan is None
    model = nn.Sequential(nn.Linear(30, 30), nn.Linear(30, 30))
    assert sk.sparsify(model, density=1.0, example=torch.randn(4, 30)).plan is None
    assert not asked


def test_forward_never_measures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "take_turns", lambda *_, **__: pytest.fail("measured"))
    monkeypatch.setattr(tune_module, "time_layer", lambda *_: pytest.fail("measured"))
    model = two_layers()
    model(torch.randn(4, 8)).sum().backward()
    sk.explain(model)


def test_compact_follows_the_rule_and_not_the_clock() -> None:
    """A dense master that runs dense because that was faster still becomes compact."""
    model = nn.Sequential(nn.Linear(20, 20))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    method = sk.prune.GMP(density=0.1, update_every=1, begin=0.0, end=0.5)
    pruner = sk.Pruner(model, optimizer, method, total_steps=4)
    for _ in range(3):
        model(torch.randn(4, 20)).sum().backward()
        pruner.step()
        optimizer.zero_grad()
    model[0].format.variant = "dense"
    weight = model[0].weight.detach()
    assert len(pruner.compact()) == 1
    assert model[0].format.name == "csr"
    assert torch.equal(model[0].weight, weight)


def _tune_on_a_rank(rank: int, folder: Path) -> None:
    def time_layer(layer: nn.Module, call: Call, training: bool) -> Times:
        if rank == 1:
            raise AssertionError("rank 1 measures")
        if call.shape[0] == 3:
            raise OSError("no clock")
        return {"forward": {"panel": 2.0, "dense": 1.0, "dense_layer": 1.0}}

    tune_module.time_layer = time_layer
    model = two_layers()
    plan = sk.tune(nn.parallel.DistributedDataParallel(model), torch.randn(4, 8), cache=False)
    try:
        sk.tune(model, torch.randn(3, 8), cache=False)
        failure = ""
    except (OSError, RuntimeError) as error:
        failure = f"{type(error).__name__}: {error}"
    found = [plan.to_json(), [model[i].format.variant for i in (0, 2)], failure]
    (folder / str(rank)).write_text(json.dumps(found))


def test_rank_zero_measures_for_all(tmp_path: Path) -> None:
    run_on_ranks(_tune_on_a_rank, tmp_path)
    first, second = (json.loads((tmp_path / rank).read_text()) for rank in "01")
    assert first[0] == second[0]
    assert first[1] == second[1] == ["dense", "dense"]
    assert first[2] == "OSError: no clock"
    assert second[2] == "RuntimeError: Expected rank 0 to measure a plan. Got OSError: no clock"
