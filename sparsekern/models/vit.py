"""A vision transformer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from sparsekern._checks import check_positive
from sparsekern.models.model import MODELS, is_image
from sparsekern.models.transformer import Transformer, initialize


class VisionTransformer(nn.Module):
    """Patches become tokens by a convolution; a class token is read by the output layer.

    Takes ``[batch, channels, height, width]``, gives logits ``[batch, classes]``. Layer norms are
    at the beginning of the branches, and one before the output.

    Args:
        channels: of the images.
        patch: pixels of a patch each way.
        patches: number of patches of an image.
        features: of a token.
        blocks: of the encoder.
        classes: number of logits.
        dropout: of the tokens, while training.
    """

    def __init__(
        self,
        channels: int,
        patch: int,
        patches: int,
        features: int,
        blocks: nn.ModuleList,
        classes: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.patch = nn.Conv2d(channels, features, patch, stride=patch)
        self.class_token = nn.Parameter(torch.empty(1, 1, features))
        self.position = nn.Parameter(torch.empty(1, 1 + patches, features))
        self.dropout = nn.Dropout(dropout)
        self.blocks = blocks
        self.norm = nn.LayerNorm(features)
        self.output = nn.Linear(features, classes)
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patch(x).flatten(2).transpose(1, 2)
        first = self.class_token.expand(len(x), -1, -1)
        x = self.dropout(torch.cat([first, tokens], 1) + self.position)
        for block in self.blocks:
            x = block(x)
        return self.output(self.norm(x[:, 0]))


@dataclass(frozen=True, kw_only=True)
class ViT(Transformer):
    """Configuration of :class:`VisionTransformer`.

    Args:
        patch: pixels of a patch each way; divides height and width of the images.
        features, heads, depth, expansion, dropout, width: see
            :class:`~sparsekern.models.transformer.Transformer`.

    Reference: Dosovitskiy et al., An image is worth 16x16 words, 2021, section 3.1.
    """

    patch: int = 4

    samples: ClassVar[str] = "images [channels, height, width]"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self.patch, "patch")

    def fits(self, input_shape: tuple[int, ...], vocabulary: int | None) -> bool:
        return is_image(input_shape, vocabulary)

    def network(
        self, input_shape: tuple[int, ...], classes: int, vocabulary: int | None
    ) -> nn.Module:
        channels, height, width = input_shape
        if height % self.patch or width % self.patch:
            raise ValueError(
                f"Expected the sizes of the images to be multiples of patch, {self.patch}. "
                f"Got {height}x{width}."
            )
        return VisionTransformer(
            channels,
            self.patch,
            (height // self.patch) * (width // self.patch),
            self.scaled_features,
            self.blocks(norm_first=True),
            classes,
            self.dropout,
        )


MODELS.add("vit", ViT)
