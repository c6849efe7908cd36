"""What every registered model promises."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import nn

import sparsekern as sk
from sparsekern.models import BERT, CNN, GPT, MLP, MODELS, VGG, Model, ResNet, ViT
from sparsekern.prune.sparsify import find_targets
from sparsekern.train.loss import cross_entropy

IMAGE = ((3, 16, 16), {})
TEXT = ((9,), {"vocabulary": 11})
CASES: dict[str, tuple[Model, tuple[int, ...], dict[str, Any]]] = {
    "mlp": (MLP(hidden=(16, 12)), *IMAGE),
    "cnn": (CNN(channels=(8, 12)), *IMAGE),
    "cnn-digits": (CNN(channels=(8, 12)), (1, 8, 8), {}),
    "resnet": (ResNet(depth=20, width=0.25), *IMAGE),
    "resnet-projection": (ResNet(depth=20, width=0.25, shortcut="projection"), *IMAGE),
    "resnet-imagenet": (ResNet(depth=18, width=0.125, stem="imagenet"), (3, 64, 64), {}),
    "vgg": (VGG(depth=11, width=0.125), (3, 32, 32), {}),
    "vit": (ViT(features=16, heads=2, depth=2), *IMAGE),
    "bert": (BERT(features=16, heads=2, depth=2, dropout=0.1), *TEXT),
    "bert-rows": (BERT(features=16, heads=2, depth=2), (8, 8), {}),
    "gpt": (GPT(features=16, heads=2, depth=2), (9,), {"vocabulary": 11, "per_token": True}),
}
every_case = pytest.mark.parametrize("case", CASES)


def _build(case: str, **changes: Any) -> nn.Module:
    model, shape, options = CASES[case]
    classes = options["vocabulary"] if options.get("per_token") else 5
    return dataclasses.replace(model, **changes).build(shape, classes, **options)


def _batch(case: str, samples: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    _, shape, options = CASES[case]
    if "vocabulary" not in options:
        return torch.randn(samples, *shape), torch.arange(samples) % 5
    x = torch.randint(1, options["vocabulary"], (samples, *shape))
    return x, x.roll(-1, 1) if options.get("per_token") else torch.arange(samples) % 5


def _layers(model: nn.Module) -> list[nn.Module]:
    kinds = (nn.Linear, nn.Conv2d)
    return [module for module in model.modules() if isinstance(module, kinds)]


def test_every_registered_model_has_a_case():
    assert {type(case[0]) for case in CASES.values()} == {MODELS[name] for name in MODELS}


@every_case
def test_shape_of_the_logits(case: str):
    x, y = _batch(case)
    logits = _build(case)(x)
    assert logits.shape == (*y.shape, 11 if y.ndim > 1 else 5)
    assert logits.dtype == torch.float32


@every_case
def test_takes_steps_and_learns(case: str):
    model, (x, y) = _build(case), _batch(case)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.004)
    losses = []
    for _ in range(40):
        loss = cross_entropy(model(x), y)
        loss.backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


@every_case
def test_takes_steps_when_it_is_sparse(case: str):
    """The layers that can be sparse are, and topology updates work on them."""
    model, (x, y) = _build(case), _batch(case)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    method = sk.prune.RigL(density=0.2, distribution="uniform", update_every=2, end=1.0)
    pruner = sk.Pruner(model, optimizer, method, total_steps=6)
    for _ in range(5):
        loss = cross_entropy(model(x), y)
        loss.backward()
        pruner.step()
        optimizer.zero_grad()
    assert torch.isfinite(loss)
    assert pruner.density == pytest.approx(0.2, abs=0.02)
    assert any(isinstance(module, sk.nn.SparseLinear) for module in model.modules())


@every_case
def test_weights_follow_the_callers_seed(case: str):
    states = []
    for seed in (7, 7, 8):
        torch.manual_seed(seed)
        states.append(_build(case).state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert any(not torch.equal(states[0][key], states[2][key]) for key in states[0])


@pytest.mark.parametrize("width", [0.5, 2.0, 1 / 64])
@every_case
def test_width_scales_what_is_between_input_and_output(case: str, width: float):
    whole, scaled = _build(case, width=1.0), _build(case, width=width)
    x, _ = _batch(case)
    assert scaled(x).shape == whole(x).shape
    pairs = zip(_layers(whole), _layers(scaled), strict=True)
    ratios = [new.weight.numel() / old.weight.numel() for old, new in pairs]
    assert max(ratios) < 1 if width < 1 else min(ratios) > 1
    if width != 1 / 64:  # where every hidden size is at its least
        for ratio in ratios:  # at the input or the output, or inside
            assert ratio in (pytest.approx(width), pytest.approx(width**2))


@every_case
def test_same_logits_in_any_batch(case: str):
    """In evaluation a sample's logits depend on that sample alone."""
    model, (x, _) = _build(case).eval(), _batch(case)
    assert torch.allclose(model(x)[2:3], model(x[2:3]), atol=1e-5)


@pytest.mark.parametrize("width", [0.0, -1.0, float("nan")])
@every_case
def test_width_out_of_range(case: str, width: float):
    with pytest.raises(ValueError, match=r"Expected width to be above 0\. Got"):
        _build(case, width=width)


@pytest.mark.parametrize(
    ("model", "shape", "options", "sentence"),
    [
        (MLP(hidden=(4,)), (9,), {"vocabulary": 5}, "to be numbers. Got tokens of shape [9]."),
        (CNN(), (64,), {}, "to be images [channels, height, width]. Got numbers of shape [64]."),
        (ResNet(depth=20), (8, 8), {}, "to be images [channels, height, width]. Got numbers of "),
        (VGG(depth=16), (8, 8), {}, "to be images [channels, height, width]. Got numbers of "),
        (ViT(), (9,), {"vocabulary": 5}, "to be images [channels, height, width]. Got tokens of "),
        (BERT(), (1, 8, 8), {}, "or rows of numbers [tokens, numbers]. Got numbers of shape [1, "),
        (GPT(), (8, 8), {"per_token": True}, "to be tokens [tokens]. Got numbers of shape [8, 8]."),
        (
            GPT(),
            (9,),
            {"vocabulary": 5},
            "Expected data with a label for each token for this model. Got one for each sample.",
        ),
        (
            BERT(),
            (9,),
            {"vocabulary": 5, "per_token": True},
            "Expected data with a label for each sample for this model. Got one for each token.",
        ),
    ],
)
def test_data_of_another_kind(
    model: Model, shape: tuple[int, ...], options: dict[str, Any], sentence: str
):
    with pytest.raises(ValueError) as error:
        model.build(shape, 5, **options)
    assert sentence in str(error.value)


@every_case
def test_linear_layers_can_become_sparse(case: str):
    """Linear layers are plain ones that can become sparse, but for an embedding's weight."""
    model = _build(case)
    targets, dense = find_targets(model, ())
    names = {name for target in targets for name in target.names}
    linear = {n for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    assert linear - names == ({"output"} if case == "gpt" else set())
    if case == "gpt":
        reasons = [layer.reason for layer in dense if layer.names == ["output"]]
        assert reasons == ["its weight is shared with embed (Embedding)"]
