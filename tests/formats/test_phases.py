"""Dense and sparse phases of one dense master, as AC/DC alternates them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

import sparsekern as sk
from sparsekern.nn import SparseConv2d, SparseLinear

PHASES = (1.0, 0.1, 1.0, 0.1, 0.5)
RUNS = {1.0: "dense", 0.1: "csr", 0.5: "csr"}


def make(kind: str) -> tuple[SparseLinear | SparseConv2d, Tensor]:
    torch.manual_seed(0)
    if kind == "linear":
        return SparseLinear.from_dense(nn.Linear(30, 20), density=1.0, format="masked"), (
            torch.randn(40, 30)
        )
    conv = nn.Conv2d(3, 8, 3, padding=1)
    return SparseConv2d.from_dense(conv, density=1.0, format="masked"), torch.randn(4, 3, 9, 9)


def forward(layer: SparseLinear | SparseConv2d, x: Tensor, weight: Tensor) -> Tensor:
    if isinstance(layer, SparseLinear):
        return F.linear(x, weight, layer.bias)
    return F.conv2d(x, weight, layer.bias, padding=1)


def largest(layer: SparseLinear | SparseConv2d, density: float) -> Tensor:
    scores = layer.format.parameter.detach().abs()
    return sk.ops.mask.topk(scores, round(density * scores.numel()))


@pytest.mark.parametrize("kind", ["linear", "conv2d"])
def test_phases_train_as_a_dense_twin_with_masks(kind: str) -> None:
    """Weights, gradients and momentum over phases are those of plain torch times the mask."""
    layer, x = make(kind)
    twin, twin_bias = layer.weight.detach().clone().requires_grad_(), layer.bias
    assert twin_bias is not None
    optimizer = torch.optim.SGD([layer.format.parameter], lr=0.1, momentum=0.9)
    dense_optimizer = torch.optim.SGD([twin], lr=0.1, momentum=0.9)
    for density in PHASES:
        mask = largest(layer, density)
        change = layer.set_mask(mask)
        sk.optim.move_state(optimizer, layer.format.parameter, change)
        with torch.no_grad():
            twin.mul_(mask)
            momentum = dense_optimizer.state[twin].get("momentum_buffer")
            if momentum is not None:
                momentum.mul_(change.kept if change.kept is not None else mask)
        assert layer.format.running == RUNS[density]
        for _ in range(3):
            optimizer.zero_grad()
            dense_optimizer.zero_grad()
            layer(x).square().mean().backward()
            forward(layer, x, twin).square().mean().backward()
            assert twin.grad is not None
            twin.grad.mul_(mask)
            torch.testing.assert_close(layer.format.parameter.grad, twin.grad)
            optimizer.step()
            dense_optimizer.step()
            torch.testing.assert_close(layer.weight, twin)
            assert not layer.format.parameter.detach()[~mask].any()
        layer.format.validate()


def test_explain_says_what_a_phase_runs() -> None:
    layer, _ = make("linear")
    model = nn.Sequential(layer)
    for density in PHASES:
        layer.set_mask(largest(layer, density))
        (row,) = sk.explain(model).rows
        assert (row.format, row.variant) == ("masked", RUNS[density])
        assert row.density == pytest.approx(density)
        assert "rule: csr kernels up to density 0.55 on cpu" in row.why


def test_a_plan_holds_in_the_phase_it_was_measured_in() -> None:
    layer, x = make("linear")
    model = nn.Sequential(layer)
    layer.set_mask(largest(layer, 0.1))
    plan = sk.tune(model, x)
    chosen = plan["0"].variant
    for density in (1.0, 0.1, 1.0, 0.1):
        layer.set_mask(largest(layer, density))
        assert layer.format.running == ("dense" if density == 1.0 else chosen)


def test_phases_compile_to_one_graph_each() -> None:
    layer, x = make("linear")
    torch._dynamo.reset()
    counter = CompileCounter()
    compiled = torch.compile(layer, backend=counter)
    for density in (1.0, 0.1, 1.0, 0.1, 1.0, 0.1):
        layer.set_mask(largest(layer, density))
        torch.testing.assert_close(compiled(x), forward(layer, x, layer.weight.detach()))
    assert counter.frame_count <= 2
