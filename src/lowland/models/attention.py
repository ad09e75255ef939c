"""The pre-norm transformer block that the ViT and the language model share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowland.core.errors import require


class Attention(nn.Module):
    """Multi-head self-attention with one packed projection for queries, keys and values (Vaswani et al. 2017)."""

    def __init__(self, width: int, heads: int, *, causal: bool) -> None:
        super().__init__()
        require(width % heads == 0, "heads", f"must divide the width {width}", heads)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.heads, self.causal = heads, causal

    def forward(self, x: Tensor) -> Tensor:
        """Return the mixed tokens."""
        n, length, width = x.shape
        parts = self.qkv(x).view(n, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(parts[0], parts[1], parts[2], is_causal=self.causal)
        result: Tensor = self.out(mixed.transpose(1, 2).reshape(n, length, width))
        return result


class TransformerBlock(nn.Module):
    """Attention and a two-layer network, each behind a layer norm and beside a shortcut."""

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        causal: bool,
        dropout: float = 0.0,
        epsilon: float = 1e-5,
        approximate: str = "none",
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=epsilon)
        self.attention = Attention(width, heads, causal=causal)
        self.norm2 = nn.LayerNorm(width, eps=epsilon)
        self.hidden = nn.Linear(width, 4 * width)
        self.output = nn.Linear(4 * width, width)
        self.activation = nn.GELU(approximate)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Return the tokens after the block."""
        x = x + self.dropout(self.attention(self.norm1(x)))
        result: Tensor = x + self.dropout(self.output(self.activation(self.hidden(self.norm2(x)))))
        return result


@torch.no_grad()
def initialize_linear(model: nn.Module, *, std: float | None = None) -> None:
    """Draw the weights of linear and embedding layers; biases are 0."""
    for module in model.modules():
        if isinstance(module, nn.Linear) and std is None:
            nn.init.xavier_uniform_(module.weight)
        elif isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02 if std is None else std)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
