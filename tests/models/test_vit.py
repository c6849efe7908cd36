"""The vision transformer."""

from __future__ import annotations

import pytest
import torch

from sparsekern.models import MODELS, ViT


@pytest.mark.parametrize(
    ("features", "heads", "parameters"), [(192, 3, 5_717_416), (384, 6, 22_050_664)]
)
def test_parameters(features: int, heads: int, parameters: int):
    """DeiT-Ti and DeiT-S: ViT with patches of 16 for ImageNet."""
    config = ViT(patch=16, features=features, heads=heads, depth=12)
    with torch.device("meta"):
        model = config.build((3, 224, 224), 1000)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


def test_tokens_are_the_patches_row_by_row():
    model = ViT(features=8, heads=2, depth=1, patch=2).build((1, 4, 6), 3)
    seen = []
    model.blocks[0].register_forward_hook(lambda *hook: seen.append(hook[1][0]))
    x = torch.randn(2, 1, 4, 6)
    model(x)
    assert seen[0].shape == (2, 1 + 6, 8)
    weight = model.patch.weight.flatten(1)
    patch = weight @ x[1, 0, 0:2, 2:4].flatten() + model.patch.bias
    assert torch.allclose(seen[0][1, 2], patch + model.position[0, 2], atol=1e-6)
    assert torch.allclose(seen[0][1, 0], model.class_token[0, 0] + model.position[0, 0])


def test_patch_that_does_not_fit():
    with pytest.raises(ValueError) as error:
        ViT(patch=3).build((3, 32, 32), 10)
    assert str(error.value) == (
        "Expected the sizes of the images to be multiples of patch, 3. Got 32x32."
    )


def test_patch_out_of_range():
    with pytest.raises(ValueError, match=r"Expected patch to be above 0\. Got 0\."):
        ViT(patch=0)


def test_registered():
    assert MODELS["vit"] is ViT
