"""The Pruner: what the method contract does not ask."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils.prune import l1_unstructured

import sparsekern as sk
from sparsekern.formats import CsrFormat, MaskedFormat
from sparsekern.prune import GMP, SET, Method, Pruner, RigL, Static


def model_and_optimizer(**options: float) -> tuple[nn.Sequential, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4)
    )
    return model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, **options)


def backward(model: nn.Module) -> None:
    model(torch.randn(8, 32)).square().mean().backward()


def test_rigl_update_replaces_the_optimizer_step() -> None:
    model, optimizer = model_and_optimizer()
    pruner = Pruner(model, optimizer, RigL(density=0.2, update_every=3), total_steps=100)
    for step in range(7):
        backward(model)
        bias = model[0].bias.detach().clone()
        mask = pruner.layers[0].mask()
        pruner.step()
        optimizer.zero_grad()
        updated = step in (3, 6)
        assert torch.equal(bias, model[0].bias) == updated
        assert torch.equal(mask, pruner.layers[0].mask()) != updated


def test_set_steps_on_updates_too() -> None:
    model, optimizer = model_and_optimizer()
    pruner = Pruner(model, optimizer, SET(density=0.2, update_every=1), total_steps=100)
    for _ in range(3):
        backward(model)
        bias = model[0].bias.detach().clone()
        pruner.step()
        assert not torch.equal(bias, model[0].bias)


def test_closure() -> None:
    model, optimizer = model_and_optimizer()
    pruner = Pruner(model, optimizer, RigL(density=0.2, update_every=2), total_steps=100)
    calls = []

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = model(torch.ones(8, 32)).square().mean()
        loss.backward()
        calls.append(loss.item())
        return loss

    losses = [pruner.step(closure).item() for _ in range(5)]
    assert losses == calls
    with pytest.raises(ValueError, match="Expected closure or scaler, not both"):
        pruner.step(closure, scaler=torch.amp.GradScaler("cpu"))


def test_scaler_waits_for_finite_gradients() -> None:
    """After an overflow nothing happens and the due update waits; gradients are unscaled."""
    model, optimizer = model_and_optimizer()
    pruner = Pruner(model, optimizer, RigL(density=0.2, update_every=2), total_steps=100)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    masks = []
    for step in range(5):
        overflow = step == 2
        loss = model(torch.randn(8, 32)).square().mean()
        scaler.scale(loss * float("inf") if overflow else loss).backward()
        before = pruner.layers[0].mask()
        bias = model[0].bias.detach().clone()
        pruner.step(scaler=scaler)
        scaler.update()
        optimizer.zero_grad()
        masks.append(not torch.equal(before, pruner.layers[0].mask()))
        assert torch.isfinite(model[0].bias).all()
        if overflow:
            assert torch.equal(bias, model[0].bias)
            assert scaler.get_scale() == 4.0
    assert masks == [False, False, False, True, True]


def test_scaled_training_equals_unscaled() -> None:
    results = []
    for scaled in (False, True):
        model, optimizer = model_and_optimizer()
        pruner = Pruner(model, optimizer, RigL(density=0.2, update_every=2), total_steps=100)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0) if scaled else None
        for step in range(6):
            x = torch.randn(8, 32, generator=torch.Generator().manual_seed(step))
            loss = model(x).square().mean()
            (scaler.scale(loss) if scaler else loss).backward()
            pruner.step(scaler=scaler)
            if scaler:
                scaler.update()
            optimizer.zero_grad()
        results.append(model.state_dict())
    for a, b in zip(results[0].values(), results[1].values(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("clip", [1e-2, 1e9])
def test_gradients_unscaled_by_the_caller(clip: float) -> None:
    """torch's recipe for clipping (unscale_, clip, step), on optimiser steps and on updates."""
    results = []
    for scaled in (False, True):
        model, optimizer = model_and_optimizer()
        pruner = Pruner(model, optimizer, RigL(density=0.2, update_every=2), total_steps=100)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=scaled)
        for step in range(6):
            x = torch.randn(8, 32, generator=torch.Generator().manual_seed(step))
            scaler.scale(model(x).square().mean()).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), clip)
            pruner.step(scaler=scaler)
            scaler.update()
            optimizer.zero_grad()
        results.append(model.state_dict())
    for a, b in zip(results[0].values(), results[1].values(), strict=True):
        assert torch.equal(a, b)


def test_overflow_found_by_the_caller() -> None:
    model, optimizer = model_and_optimizer()
    pruner = Pruner(model, optimizer, RigL(density=0.2, update_every=1), total_steps=100)
    pruner.steps = 1
    pruner._arm()
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    scaler.scale(model(torch.randn(8, 32)).square().mean() * float("inf")).backward()
    scaler.unscale_(optimizer)
    mask = pruner.layers[0].mask()
    pruner.step(scaler=scaler)
    scaler.update()
    assert scaler.get_scale() == 4.0
    assert torch.equal(pruner.layers[0].mask(), mask)


def test_gradient_accumulation_feeds_the_dense_gradient() -> None:
    """Two half batches grow the same weights as one batch."""
    masks = []
    x = torch.randn(16, 32)
    for pieces in (1, 2):
        model, optimizer = model_and_optimizer()
        pruner = Pruner(model, optimizer, RigL(density=0.2, update_every=1), total_steps=100)
        pruner.steps = 1
        pruner._arm()
        for piece in x.chunk(pieces):
            (model(piece).square().sum() / 16).backward()
        pruner.step()
        masks.append([layer.mask() for layer in pruner.layers])
    assert all(torch.equal(a, b) for a, b in zip(*masks, strict=True))


def test_gmp_then_compact() -> None:
    """A dense master ends as compact rows: same outputs, same further training as when masked."""
    results = []
    for compact in (False, True):
        model, optimizer = model_and_optimizer(weight_decay=1e-3)
        pruner = Pruner(model, optimizer, GMP(density=0.1, update_every=2, end=0.5), total_steps=20)
        for step in range(20):
            x = torch.randn(8, 32, generator=torch.Generator().manual_seed(step))
            model(x).square().mean().backward()
            pruner.step()
            optimizer.zero_grad()
            if compact and step == 12:
                y = model(x).detach()
                changed = pruner.compact()
                assert [row.format for row in changed] == ["csr", "csr"]
                torch.testing.assert_close(model(x), y)
                assert isinstance(model[0].format, CsrFormat)
                momentum = optimizer.state[model[0].format.parameter]["momentum_buffer"]
                assert momentum.shape == model[0].format.parameter.shape
        for layer in pruner.layers:
            layer.format.validate()
        results.append([layer.weight.detach() for layer in model if hasattr(layer, "format")])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_compact_with_a_graph_alive_says_so() -> None:
    model, optimizer = model_and_optimizer()
    pruner = Pruner(model, optimizer, GMP(density=0.1, update_every=1, end=0.2), total_steps=20)
    for _ in range(5):
        loss = model(torch.randn(8, 32)).square().mean()
        loss.backward()
        pruner.step()
        optimizer.zero_grad()
    weight = model[0].weight.detach()
    with pytest.raises(RuntimeError, match=r"Expected no graph of an earlier step .*\(del loss\)"):
        pruner.compact()
    assert isinstance(model[0].format, MaskedFormat)
    assert torch.equal(model[0].weight, weight)
    del loss
    assert pruner.compact()


def test_momentum_built_before_conversion_is_reset() -> None:
    model, optimizer = model_and_optimizer()
    backward(model)
    optimizer.step()
    optimizer.zero_grad()
    Pruner(model, optimizer, Static(density=0.2), total_steps=100)
    backward(model)
    optimizer.step()


@pytest.mark.parametrize("method", [Static, RigL, SET, GMP])
def test_a_tiny_density_leaves_no_layer_empty(method: type[Method]) -> None:
    """The density that came out is what is reported."""
    model, optimizer = model_and_optimizer()
    pruner = Pruner(model, optimizer, method(density=1e-9), total_steps=4)
    for _ in range(4):
        backward(model)
        pruner.step()
        optimizer.zero_grad()
    assert [layer.nnz for layer in pruner.layers] == [1, 1, 1]
    assert pruner.density == 3 / (32 * 64 + 64 * 64 + 64 * 4)


def test_tied_weights_are_updated_once() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Linear(32, 32)
            self.two = nn.Linear(32, 32)
            self.two.weight = self.one.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.two(self.one(x).relu())

    model = Twice()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner = Pruner(model, optimizer, RigL(density=0.2, update_every=1), total_steps=50)
    assert len(pruner.layers) == 1
    for _ in range(3):
        backward(model)
        pruner.step()
        optimizer.zero_grad()
    assert model.one.format is model.two.format
    model.one.format.validate()


def test_nbytes_counts_everything() -> None:
    model, optimizer = model_and_optimizer()
    pruner = Pruner(model, optimizer, Static(density=0.1), total_steps=100, format="csr")
    backward(model)
    pruner.step()
    held, state = pruner.nbytes()
    nnz = sum(layer.nnz for layer in pruner.layers)
    assert held.weight == state == 4 * nnz
    assert held.index == sum(sum(t.nbytes for t in layer.format.index) for layer in pruner.layers)


def test_missing_backward_says_so() -> None:
    model, optimizer = model_and_optimizer()
    pruner = Pruner(model, optimizer, RigL(density=0.2, update_every=1), total_steps=100)
    backward(model)
    pruner.step()
    with pytest.raises(
        RuntimeError, match=r"Expected a backward pass through 0 before pruner.step"
    ):
        pruner.step()


def test_a_failed_update_changes_nothing_and_can_be_repeated() -> None:
    """A layer that no gradient reached: neither it nor those before it change."""
    model, optimizer = model_and_optimizer()
    pruner = Pruner(model, optimizer, RigL(density=0.2, update_every=1), total_steps=100)
    backward(model)
    pruner.step()
    before = [value.clone() for value in model.state_dict().values()]
    model[0](torch.randn(8, 32)).square().mean().backward()
    with pytest.raises(RuntimeError, match="Expected a backward pass through 2 before"):
        pruner.step()
    after = model.state_dict().values()
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert pruner.steps == 1
    masks = [layer.mask() for layer in pruner.layers]
    backward(model)
    pruner.step()
    assert not all(torch.equal(a, b.mask()) for a, b in zip(masks, pruner.layers, strict=True))


def test_bad_arguments() -> None:
    model, optimizer = model_and_optimizer()
    with pytest.raises(TypeError, match=r"Expected method to be a Method. Got str"):
        Pruner(model, optimizer, "rigl", total_steps=10)
    with pytest.raises(ValueError, match="Expected total_steps to be above 0"):
        Pruner(model, optimizer, Static(), total_steps=0)
    with pytest.raises(ValueError, match="Expected exclude to name modules of the model. Got 'fc'"):
        Pruner(model, optimizer, Static(), total_steps=10, exclude=["fc"])
    with pytest.raises(ValueError, match="Expected format to be one of"):
        Pruner(model, optimizer, Static(), total_steps=10, format="coo")
    with pytest.raises(ValueError, match="Expected format to be auto or masked for gmp"):
        Pruner(model, optimizer, GMP(), total_steps=10, format="csr")
    with pytest.raises(
        ValueError, match="Expected a model with Linear or Conv2d layers to prune. Got none"
    ):
        Pruner(nn.Sequential(nn.ReLU()), optimizer, Static(), total_steps=10)
    with pytest.raises(ValueError, match="Expected total_steps to be at least 2 for gmp. Got 1"):
        Pruner(model, optimizer, GMP(), total_steps=1)
    assert type(model[0]) is nn.Linear


@pytest.mark.parametrize(
    ("exclude", "sentence"),
    [
        ("024", "Expected exclude to be a list of texts. Got '024'"),
        (None, "Expected exclude to be a list of texts. Got None"),
        (5, "Expected exclude to be a list of texts. Got 5"),
        ([5], r"Expected exclude\[0\] to be text. Got 5"),
    ],
)
def test_exclude_is_a_list_of_texts(exclude: object, sentence: str) -> None:
    model, optimizer = model_and_optimizer()
    with pytest.raises(TypeError, match=sentence):
        Pruner(model, optimizer, Static(), total_steps=10, exclude=exclude)
    with pytest.raises(TypeError, match=sentence):
        sk.sparsify(model, 0.5, exclude=exclude)
    assert type(model[0]) is nn.Linear
    sk.sparsify(model, 0.1)
    with pytest.raises(TypeError, match=sentence):
        Pruner(model, optimizer, Static(), total_steps=10, exclude=exclude)


@pytest.mark.parametrize(
    ("changes", "kind", "sentence"),
    [
        ({"model": "m"}, TypeError, r"Expected model to be a torch.nn.Module\. Got str"),
        ({"optimizer": "sgd"}, TypeError, r"Expected optimizer to be a torch\.optim\.Optimizer"),
        ({"seed": "x"}, TypeError, "Expected seed to be an integer. Got 'x'"),
        ({"seed": True}, TypeError, "Expected seed to be an integer. Got True"),
        ({"seed": -1}, ValueError, r"Expected seed to be in \[0, 2\*\*64\). Got -1"),
        (
            {"format": ["csr"]},
            ValueError,
            r"Expected format to be one of bsr, condensed, csr, masked.* Got \['csr'",
        ),
    ],
)
def test_arguments_are_checked_before_anything(
    changes: dict[str, object], kind: type[Exception], sentence: str
) -> None:
    model, optimizer = model_and_optimizer()
    given = {"model": model, "optimizer": optimizer, "method": Static(), "total_steps": 10}
    with pytest.raises(kind, match=sentence):
        Pruner(**{**given, **changes})
    assert type(model[0]) is nn.Linear


@pytest.mark.parametrize("sparse", [False, True])
def test_optimizer_of_other_weights(sparse: bool) -> None:
    model, _ = model_and_optimizer()
    if sparse:
        sk.sparsify(model, 0.1)
    optimizer = torch.optim.SGD(model[:4].parameters(), lr=0.1)
    with pytest.raises(
        ValueError, match="Expected optimizer to hold the weights of .* Got one without that of 4"
    ):
        Pruner(model, optimizer, Static(), total_steps=10)
    assert (type(model[0]) is nn.Linear) != sparse
    if not sparse:
        assert Pruner(model, optimizer, Static(), total_steps=10, exclude=["4"]).layers


def test_no_model() -> None:
    with pytest.raises(TypeError, match=r"Expected model to be a torch.nn.Module\. Got str"):
        sk.sparsify("x", 0.1)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"Expected model to be a torch.nn.Module\. Got int"):
        sk.densify(5)  # type: ignore[type-var]


def test_checkpoint_of_another_run_is_refused() -> None:
    model, optimizer = model_and_optimizer()
    pruner = Pruner(model, optimizer, Static(), total_steps=10)
    state = pruner.state_dict()
    with pytest.raises(ValueError, match="Expected a checkpoint with method 'static'. Got 'rigl'"):
        pruner.load_state_dict({**state, "method": "rigl"})
    with pytest.raises(ValueError, match="Expected a checkpoint with total_steps 10. Got 20"):
        pruner.load_state_dict({**state, "total_steps": 20})


def test_conversion_after_wrapping_is_refused(tmp_path: object) -> None:
    store = torch.distributed.FileStore(str(tmp_path) + "/store", 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        model, _optimizer = model_and_optimizer()
        with pytest.raises(ValueError, match="before it is wrapped in DistributedDataParallel"):
            sk.sparsify(DistributedDataParallel(model), 0.1)
    finally:
        torch.distributed.destroy_process_group()


def test_sparsify_report_and_errors() -> None:
    model, _ = model_and_optimizer()
    report = sk.sparsify(model, 0.2, exclude=["4"])
    assert report.density == pytest.approx(0.2, abs=1e-3)
    assert [row.names for row in report.left_dense] == [["4"]]
    assert "excluded by '4'" in str(report)
    assert type(model[4]) is nn.Linear
    fresh, _ = model_and_optimizer()
    for arguments, sentence in (
        ({}, "Expected either density or mask"),
        ({"density": 0.1, "mask": "nonzero"}, "Expected either density or mask"),
        ({"mask": "zeros"}, "Expected mask to be 'nonzero'"),
        ({"density": -1}, r"Expected density to be in \[0, 1\]"),
        ({"density": 0.1, "score": "size"}, "Expected score to be one of magnitude, random"),
        ({"density": 0.1, "format": "csc"}, "Expected format to be one of"),
        ({"density": 0.1, "distribution": "x"}, "Expected distribution to be one of"),
    ):
        with pytest.raises(ValueError, match=sentence):
            sk.sparsify(fresh, **arguments)
    with pytest.raises(ValueError, match="Got none, the model is sparse already"):
        sk.sparsify(nn.Sequential(model[0]), 0.1)


def test_conversion_is_all_or_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever fails, at whatever layer: modules, weights and gradients are as they were."""

    def assert_fails(format: str, kind: type[Exception]) -> None:
        modules, values = list(model), [p.detach().clone() for p in model.parameters()]
        gradients = [p.grad for p in model.parameters()]
        with pytest.raises(kind):
            sk.sparsify(model, 0.1, format=format)
        with pytest.raises(kind):
            Pruner(model, optimizer, Static(density=0.1), total_steps=9, format=format)
        assert list(model) == modules
        for parameter, value, gradient in zip(model.parameters(), values, gradients, strict=True):
            assert parameter.grad is gradient
            assert torch.equal(parameter, value)

    model, optimizer = model_and_optimizer()
    backward(model)
    from_dense = CsrFormat.from_dense

    def fail_at_the_last(weight: torch.Tensor, mask: torch.Tensor) -> CsrFormat:
        if weight.shape == (4, 64):
            raise MemoryError
        return from_dense(weight, mask)

    with monkeypatch.context() as patch:
        patch.setattr(CsrFormat, "from_dense", fail_at_the_last)
        assert_fails("csr", MemoryError)
    loss = model[4](torch.randn(8, 64)).sum()  # a graph that remembers the last layer's shape
    assert_fails("csr", RuntimeError)
    del loss

    def fail(*_: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(CsrFormat, "adopt", fail)
        assert_fails("csr", MemoryError)
    assert len(sk.sparsify(model, 0.1, format="csr").layers) == 3
    backward(model)


def test_sparsify_nonzero() -> None:
    model, _ = model_and_optimizer()
    with torch.no_grad():
        for module in (model[0], model[2]):
            module.weight.mul_(torch.rand_like(module.weight) < 0.1)
    x = torch.randn(5, 32)
    y = model(x).detach()
    report = sk.sparsify(model, mask="nonzero")
    assert [row.format for row in report.layers] == ["csr", "csr", "dense"]
    assert type(model[4]) is nn.Linear
    torch.testing.assert_close(model(x), y)


def test_extreme_densities() -> None:
    for density in (0.0, 1.0):
        model, _ = model_and_optimizer()
        report = sk.sparsify(model, density, format="csr")
        assert report.density == density
        assert torch.isfinite(model(torch.randn(2, 32))).all()


def test_computed_weights_stay_dense_and_are_reported() -> None:
    model, _ = model_and_optimizer()
    nn.utils.parametrizations.weight_norm(model[0])
    l1_unstructured(model[2], "weight", 0.5)
    report = sk.sparsify(model, 0.2)
    assert [row.names for row in report.layers] == [["4"]]
    assert [row.names for row in report.left_dense] == [["0"], ["2"]]
    assert "computed from others" in str(report)


def test_scaler_with_nothing_sparse() -> None:
    model, optimizer = model_and_optimizer()
    pruner = Pruner(model, optimizer, Static(density=1.0), total_steps=10)
    assert pruner.layers == []
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(model(torch.randn(8, 32)).square().mean()).backward()
    pruner.step(scaler=scaler)
    assert pruner.density == 1.0


@pytest.mark.parametrize(
    "method", [SET(density=0.2, update_every=2), GMP(density=0.2, update_every=2, end=0.5)]
)
def test_lbfgs_trains_through_changes_of_topology(method: Method) -> None:
    model, _ = model_and_optimizer()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=4, line_search_fn="strong_wolfe")
    pruner = Pruner(model, optimizer, method, total_steps=12)
    x = torch.randn(64, 32)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = (model(x) - x[:, :4]).square().mean()
        loss.backward()
        return loss

    losses = [pruner.step(closure).item() for _ in range(9)]
    assert losses[-1] < 0.9 * losses[0]
    optimizer.zero_grad()
    assert bool(pruner.compact()) == (method.master == "dense")
    for _ in range(3):
        assert math.isfinite(pruner.step(closure).item())
    for layer in pruner.layers:
        layer.format.validate()
