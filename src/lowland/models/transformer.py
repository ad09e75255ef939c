"""Transformers on tokens: a decoder-only language model of GPT-2's form, and a classifier of texts.

Radford et al., "Language Models are Unsupervised Multitask Learners", 2019, section 2.3.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lowland.core.errors import require
from lowland.models.attention import TransformerBlock, initialize_linear
from lowland.models.blocks import check_sizes


class LanguageModel(nn.Module):
    """Token and position tables, pre-norm blocks, and a head tied to the token table; build it by `transformer`."""

    def __init__(self, *, vocabulary: int, context: int, width: int, depth: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.token = nn.Embedding(vocabulary, width)
        self.position = nn.Embedding(context, width)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.Sequential(
            *(TransformerBlock(width, heads, causal=True, dropout=dropout, approximate="tanh") for _ in range(depth))
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.token.weight
        initialize_linear(self, std=0.02)
        for name, parameter in self.named_parameters():
            if name.endswith(("attention.out.weight", "output.weight")):  # one over the root of the residual branches
                nn.init.normal_(parameter, std=0.02 / (2 * depth) ** 0.5)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits of the next token [n, vocabulary, length] of token numbers [n, length], at most the context."""
        x = _placed(tokens, self.token, self.position)
        scores: Tensor = self.head(self.norm(self.blocks(self.dropout(x))))
        return scores.transpose(1, 2)


def transformer(
    *, classes: int = 256, context: int = 128, width: int = 128, depth: int = 4, heads: int = 4, dropout: float = 0.0
) -> LanguageModel:
    """Build a decoder-only language model.

    Args:
        classes: Number of tokens in the vocabulary; 256 for bytes.
        context: Longest input in tokens.
        width: Channels of a token.
        depth: Number of blocks.
        heads: Heads per block.
        dropout: Probability on every branch; 0.1 in GPT-2.

    Returns:
        The network, weights drawn from torch's global generator.

    Raises:
        InputError: If a size is not positive or the heads do not divide the width.

    Example:
        >>> transformer(width=16, depth=1)(torch.zeros(2, 5, dtype=torch.long)).shape
        torch.Size([2, 256, 5])
    """
    check_sizes(classes=classes, context=context, width=width, depth=depth, heads=heads)
    return LanguageModel(vocabulary=classes, context=context, width=width, depth=depth, heads=heads, dropout=dropout)


class TextClassifier(nn.Module):
    """Token and position tables, pre-norm blocks that see both ways, the mean over places; see `text_transformer`."""

    def __init__(
        self, *, vocabulary: int, context: int, width: int, depth: int, heads: int, dropout: float, classes: int
    ) -> None:
        super().__init__()
        self.token = nn.Embedding(vocabulary, width)
        self.position = nn.Embedding(context, width)
        self.dropout = nn.Dropout(dropout)
        blocks = [TransformerBlock(width, heads, causal=False, dropout=dropout) for _ in range(depth)]
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.LayerNorm(width)
        self.linear = nn.Linear(width, classes)
        initialize_linear(self)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits [n, classes] of texts of token numbers [n, length], at most the context, without padding."""
        x = _placed(tokens, self.token, self.position)
        scores: Tensor = self.linear(self.norm(self.blocks(self.dropout(x))).mean(1))
        return scores


def text_transformer(
    *,
    classes: int = 10,
    vocabulary: int = 256,
    context: int = 64,
    width: int = 64,
    depth: int = 2,
    heads: int = 4,
    dropout: float = 0.0,
) -> TextClassifier:
    """Build a small transformer that classifies texts of a fixed length; our own design.

    Args:
        classes: Number of outputs.
        vocabulary: Number of tokens; 256 for bytes.
        context: Longest input in tokens.
        width: Channels of a token.
        depth: Number of blocks.
        heads: Heads per block.
        dropout: Probability on every branch.

    Returns:
        The network, weights drawn from torch's global generator.

    Raises:
        InputError: If a size is not positive or the heads do not divide the width.

    Example:
        >>> text_transformer(width=16, depth=1)(torch.zeros(2, 5, dtype=torch.long)).shape
        torch.Size([2, 10])
    """
    check_sizes(classes=classes, vocabulary=vocabulary, context=context, width=width, depth=depth, heads=heads)
    return TextClassifier(
        vocabulary=vocabulary, context=context, width=width, depth=depth, heads=heads, dropout=dropout, classes=classes
    )


def _placed(tokens: Tensor, token: nn.Embedding, position: nn.Embedding) -> Tensor:
    length = tokens.shape[1]
    require(length <= position.num_embeddings, "tokens", f"must be at most {position.num_embeddings} long", length)
    placed: Tensor = token(tokens) + position(torch.arange(length, device=tokens.device))
    return placed
