"""A BERT-like encoder that classifies samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsekern.models.model import MODELS
from sparsekern.models.transformer import Transformer, initialize


class Encoder(nn.Module):
    """Embedded tokens behind a class token, blocks, a pooler with tanh, an output layer.

    Takes int64 tokens ``[batch, tokens]``, of which 0 is padding that no token sees, or rows of
    numbers ``[batch, tokens, numbers]``, which a Linear layer embeds. Gives logits
    ``[batch, classes]``. Layer norms are behind the sums, and one behind the embedding.

    Args:
        embed: of tokens (``nn.Embedding``) or rows (``nn.Linear``).
        tokens: of a sample.
        features: of a token.
        blocks: of the encoder.
        classes: number of logits.
        dropout: of the embedded tokens and before the output, while training.
    """

    def __init__(
        self,
        embed: nn.Embedding | nn.Linear,
        tokens: int,
        features: int,
        blocks: nn.ModuleList,
        classes: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.embed = embed
        self.class_token = nn.Parameter(torch.empty(1, 1, features))
        self.position = nn.Parameter(torch.empty(1, 1 + tokens, features))
        self.norm = nn.LayerNorm(features)
        self.dropout = nn.Dropout(dropout)
        self.blocks = blocks
        self.pooler = nn.Linear(features, features)
        self.tanh = nn.Tanh()
        self.output = nn.Linear(features, classes)
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        mask = None
        if not x.is_floating_point():  # the class token is always seen
            mask = F.pad(x != 0, (1, 0), value=True)[:, None, None, :]
        first = self.class_token.expand(len(x), -1, -1)
        x = torch.cat([first, self.embed(x)], 1) + self.position
        x = self.dropout(self.norm(x))
        for block in self.blocks:
            x = block(x, mask)
        return self.output(self.dropout(self.tanh(self.pooler(x[:, 0]))))


@dataclass(frozen=True, kw_only=True)
class BERT(Transformer):
    """Configuration of :class:`Encoder`.

    Args:
        features, heads, depth, expansion, dropout, width: see
            :class:`~sparsekern.models.transformer.Transformer`.

    Reference: Devlin et al., BERT, 2019, section 3. Differs: no segments; the class token is a
    parameter of its own; layers start from Glorot's distribution.
    """

    samples: ClassVar[str] = "tokens [tokens] or rows of numbers [tokens, numbers]"

    def fits(self, input_shape: tuple[int, ...], vocabulary: int | None) -> bool:
        return len(input_shape) == (2 if vocabulary is None else 1)

    def network(
        self, input_shape: tuple[int, ...], classes: int, vocabulary: int | None
    ) -> nn.Module:
        features = self.scaled_features
        embed: nn.Embedding | nn.Linear
        if vocabulary is None:
            embed = nn.Linear(input_shape[1], features)
        else:
            embed = nn.Embedding(vocabulary, features)
        return Encoder(
            embed,
            input_shape[0],
            features,
            self.blocks(norm_first=False),
            classes,
            self.dropout,
        )


MODELS.add("bert", BERT)
