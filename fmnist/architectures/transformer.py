"""A small vision transformer (Dosovitskiy et al., 2021, ICLR, section 3.1)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fmnist.architectures.layers import Dropout
from fmnist.data import CLASSES, SIDE
from fmnist.hyperparameters import Hyperparameters

PATCH = 4  # pixels a side
TOKENS = (SIDE // PATCH) ** 2 + 1  # 49 patches and the class token
HEADS = 4
MLP_RATIO = 2  # hidden features of the MLP per feature of a token


class SelfAttention(nn.Module):
    """Multi-head self-attention (Dosovitskiy et al., 2021, appendix A)."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(features, 3 * features)
        self.out = nn.Linear(features, features)

    def forward(self, tokens: Tensor) -> Tensor:
        """(N, T, D) to (N, T, D)."""
        heads = self.qkv(tokens).unflatten(2, (3, HEADS, -1))  # (N, T, 3, heads, D / heads)
        query, key, value = heads.permute(2, 0, 3, 1, 4)  # (N, heads, T, D / heads) each
        attended = F.scaled_dot_product_attention(query, key, value)
        mixed: Tensor = self.out(attended.transpose(1, 2).flatten(2))  # (N, T, D)
        return mixed


class EncoderLayer(nn.Module):
    """Attention and MLP, each after a layer norm and added to its input (equations 2 and 3)."""

    def __init__(self, features: int, dropout: float) -> None:
        super().__init__()
        self.attention = nn.Sequential(nn.LayerNorm(features), SelfAttention(features), Dropout(dropout))
        self.mlp = nn.Sequential(
            nn.LayerNorm(features),
            nn.Linear(features, MLP_RATIO * features),
            nn.GELU(),
            Dropout(dropout),
            nn.Linear(MLP_RATIO * features, features),
            Dropout(dropout),
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """(N, T, D) to (N, T, D)."""
        tokens = tokens.add(self.attention(tokens))
        return tokens.add(self.mlp(tokens))


class Transformer(nn.Module):
    """Patches and a class token with learned positions, encoder layers, and a head on the class token.

    Dropout follows the paper's appendix B.1: after adding the positions, and after every dense layer except that of
    queries, keys and values; not on attention weights.

    Args:
        features: D, per token; a multiple of HEADS.
        layers: of the encoder.
        dropout: share of features dropped.
    """

    def __init__(self, features: int, layers: int, dropout: float) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, features, kernel_size=PATCH, stride=PATCH)
        self.class_token = nn.Parameter(torch.zeros(features))
        position = torch.empty(TOKENS, features)
        if not position.is_meta:  # on meta, both operations would spend seconds on imports
            position = position.normal_() * 0.02
        self.position = nn.Parameter(position)
        self.encoder = nn.Sequential(
            Dropout(dropout), *(EncoderLayer(features, dropout) for _ in range(layers)), nn.LayerNorm(features)
        )
        self.head = nn.Linear(features, len(CLASSES))

    def forward(self, images: Tensor) -> Tensor:
        """(N, 1, 28, 28) to (N, 10) logits."""
        patches = self.patches(images).flatten(2).transpose(1, 2)  # (N, 49, D)
        class_token = self.class_token.expand(images.shape[0], 1, -1)  # (N, 1, D)
        tokens = torch.cat([class_token, patches], dim=1) + self.position  # (N, 50, D)
        encoded = self.encoder(tokens)  # (N, 50, D)
        logits: Tensor = self.head(encoded[:, 0])  # (N, 10)
        return logits


def transformer(hyperparameters: Hyperparameters) -> Transformer:
    """A transformer with 4 heads.

    Args:
        hyperparameters: `filters`: features per head; `blocks`: layers of the encoder; `dropout`.
    """
    return Transformer(HEADS * hyperparameters.filters, hyperparameters.blocks, hyperparameters.dropout)
