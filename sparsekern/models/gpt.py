"""A GPT-like decoder that predicts the next token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from sparsekern.models.model import MODELS
from sparsekern.models.transformer import Transformer, initialize


class Decoder(nn.Module):
    """Embedded tokens, causal blocks, and an output layer that shares the embedding's weight.

    Takes int64 tokens ``[batch, tokens]``, gives logits ``[batch, tokens, vocabulary]``: those of
    a token depend on it and on earlier ones. Layer norms are at the beginning of the branches, and
    one before the output. The shared weight stays dense when the model is made sparse.

    Args:
        vocabulary: number of different tokens.
        tokens: of a sample, at most.
        features: of a token.
        blocks: causal ones.
        dropout: of the embedded tokens, while training.
    """

    def __init__(
        self, vocabulary: int, tokens: int, features: int, blocks: nn.ModuleList, dropout: float
    ) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, features)
        self.position = nn.Parameter(torch.empty(1, tokens, features))
        self.dropout = nn.Dropout(dropout)
        self.blocks = blocks
        self.norm = nn.LayerNorm(features)
        self.output = nn.Linear(features, vocabulary, bias=False)
        initialize(self)
        self.output.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.dropout(self.embed(x) + self.position[:, : x.shape[1]])
        for block in self.blocks:
            x = block(x)
        return self.output(self.norm(x))


@dataclass(frozen=True, kw_only=True)
class GPT(Transformer):
    """Configuration of :class:`Decoder`.

    Args:
        features, heads, depth, expansion, dropout, width: see
            :class:`~sparsekern.models.transformer.Transformer`.

    Reference: Radford et al., Language models are unsupervised multitask learners, 2019, section
    2.3. Differs: layers start from Glorot's distribution.
    """

    samples: ClassVar[str] = "tokens [tokens]"
    per_token: ClassVar[bool] = True

    def fits(self, input_shape: tuple[int, ...], vocabulary: int | None) -> bool:
        return vocabulary is not None and len(input_shape) == 1

    def network(
        self, input_shape: tuple[int, ...], classes: int, vocabulary: int | None
    ) -> nn.Module:
        if vocabulary != classes:
            raise ValueError(
                f"Expected the labels of the data to be tokens of its vocabulary, {vocabulary}. "
                f"Got {classes} classes."
            )
        return Decoder(
            vocabulary,
            input_shape[0],
            self.scaled_features,
            self.blocks(norm_first=True, causal=True),
            self.dropout,
        )


MODELS.add("gpt", GPT)
