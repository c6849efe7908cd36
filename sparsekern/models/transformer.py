"""What the ViT, the BERT-like encoder and the GPT-like decoder share."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsekern._checks import check_fraction, check_positive
from sparsekern.models.model import Model

EMBEDDING_DEVIATION = 0.02


class SelfAttention(nn.Module):
    """``softmax(q k' / sqrt(head size)) v`` of each head; four Linear layers, called as modules.

    Args:
        features: of a token, a multiple of ``heads``.
        heads: number of heads.
        dropout: of attention weights, while training.
        causal: whether a token sees only itself and earlier ones.
    """

    def __init__(self, features: int, heads: int, dropout: float, causal: bool) -> None:
        super().__init__()
        self.heads, self.dropout, self.causal = heads, dropout, causal
        self.query = nn.Linear(features, features)
        self.key = nn.Linear(features, features)
        self.value = nn.Linear(features, features)
        self.output = nn.Linear(features, features)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """``[batch, tokens, features]`` to the same.

        Args:
            x: the tokens.
            mask: bool ``[batch, 1, 1, tokens]``, True: is seen; None: all are.
        """
        batch, tokens, features = x.shape
        query, key, value = (
            layer(x).view(batch, tokens, self.heads, -1).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        dropout = self.dropout if self.training else 0.0
        seen = F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, dropout_p=dropout, is_causal=self.causal
        )
        return self.output(seen.transpose(1, 2).reshape(batch, tokens, features))


class Block(nn.Module):
    """Attention and a two-layer network with GELU, each on a residual branch with layer norm.

    Args:
        features, heads, dropout, causal: see :class:`SelfAttention`; dropout also on the branches.
        hidden: size of the layer between the two.
        norm_first: whether the norm is at the beginning of a branch (GPT-2, ViT) or behind the sum
            (BERT).
    """

    def __init__(
        self,
        features: int,
        heads: int,
        hidden: int,
        dropout: float,
        *,
        norm_first: bool,
        causal: bool = False,
    ) -> None:
        super().__init__()
        self.norm_first = norm_first
        self.attention = SelfAttention(features, heads, dropout, causal)
        self.norm1 = nn.LayerNorm(features)
        self.hidden = nn.Linear(features, hidden)
        self.gelu = nn.GELU()
        self.output = nn.Linear(hidden, features)
        self.norm2 = nn.LayerNorm(features)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """``[batch, tokens, features]`` to the same; ``mask`` as in :class:`SelfAttention`."""
        if self.norm_first:
            x = x + self.dropout(self.attention(self.norm1(x), mask))
            return x + self.dropout(self.output(self.gelu(self.hidden(self.norm2(x)))))
        x = self.norm1(x + self.dropout(self.attention(x, mask)))
        return self.norm2(x + self.dropout(self.output(self.gelu(self.hidden(x)))))


@torch.no_grad()
def initialize(model: nn.Module) -> None:
    """Glorot's uniform distribution for layers, deviation 0.02 for embeddings and free parameters.

    Biases start from zero. The papers of BERT and GPT-2 take 0.02 for all weights, which is fit for
    768 features and lets a narrow network learn slowly.
    """
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if isinstance(module, nn.LayerNorm):
                continue
            if name == "bias":
                parameter.zero_()
            elif isinstance(module, nn.Conv2d):  # of patches: a Linear layer of their pixels
                nn.init.xavier_uniform_(parameter.view(len(parameter), -1))
            elif isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(parameter)
            else:
                parameter.normal_(std=EMBEDDING_DEVIATION)


@dataclass(frozen=True, kw_only=True)
class Transformer(Model):
    """The options that the three share.

    Args:
        features: of a token, at width 1; a multiple of ``heads``.
        heads: of every attention layer.
        depth: number of blocks.
        expansion: hidden layers have ``expansion * features``.
        dropout: in [0, 1).
        width: see :class:`Model`; a factor on the size of a head, whose number stays.
    """

    features: int = 128
    heads: int = 4
    depth: int = 4
    expansion: int = 4
    dropout: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("features", "heads", "depth", "expansion"):
            check_positive(getattr(self, name), name)
        check_fraction(self.dropout, "dropout")
        if self.dropout == 1.0:
            raise ValueError("Expected dropout to be below 1. Got 1.0.")
        if self.features % self.heads:
            raise ValueError(
                f"Expected features to be a multiple of heads, {self.heads}. Got {self.features}."
            )

    @property
    def scaled_features(self) -> int:
        """Features of a token at this width."""
        return self.heads * self.scaled(self.features // self.heads)

    def blocks(self, *, norm_first: bool, causal: bool = False) -> nn.ModuleList:
        """The blocks of the network."""
        features = self.scaled_features
        return nn.ModuleList(
            Block(
                features,
                self.heads,
                self.expansion * features,
                self.dropout,
                norm_first=norm_first,
                causal=causal,
            )
            for _ in range(self.depth)
        )
