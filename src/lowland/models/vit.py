"""Vision transformer (Dosovitskiy et al., "An Image is Worth 16x16 Words", 2021, section 3.1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lowland.core.errors import require
from lowland.models.attention import TransformerBlock, initialize_linear
from lowland.models.blocks import check_sizes


class VisionTransformer(nn.Module):
    """Patches, a class token, learned positions, pre-norm blocks; build it by `vit`."""

    def __init__(
        self, *, size: int, patch: int, width: int, depth: int, heads: int, dropout: float, classes: int, channels: int
    ) -> None:
        super().__init__()
        self.patches = nn.Conv2d(channels, width, patch, patch)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.position = nn.Parameter(torch.zeros(1, (size // patch) ** 2 + 1, width))
        blocks = [TransformerBlock(width, heads, causal=False, dropout=dropout, epsilon=1e-6) for _ in range(depth)]
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.linear = nn.Linear(width, classes)
        initialize_linear(self)
        nn.init.normal_(self.class_token, std=0.02)
        nn.init.normal_(self.position, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [n, classes] of images [n, channels, size, size]."""
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_token.expand(len(x), -1, -1), tokens], 1) + self.position
        scores: Tensor = self.linear(self.norm(self.blocks(tokens))[:, 0])
        return scores


def vit(
    *,
    size: int = 32,
    patch: int = 4,
    width: int = 192,
    depth: int = 6,
    heads: int = 3,
    dropout: float = 0.0,
    classes: int = 10,
    channels: int = 3,
) -> VisionTransformer:
    """Build a vision transformer.

    Args:
        size: Pixels of an image's side.
        patch: Pixels of a patch's side.
        width: Channels of a token; 192 in ViT-Ti, 384 in ViT-S.
        depth: Number of blocks; 12 in the published sizes, 6 here for small images.
        heads: Heads per block; 3 in ViT-Ti, 6 in ViT-S.
        dropout: Probability on every branch.
        classes: Number of outputs.
        channels: 1 for gray images, 3 for color.

    Returns:
        The network, weights drawn from torch's global generator.

    Raises:
        InputError: If a size is not positive or the patch does not divide the image.

    Example:
        >>> vit(size=8, patch=2, width=24, channels=1)(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """
    check_sizes(size=size, patch=patch, width=width, depth=depth, heads=heads, classes=classes, channels=channels)
    require(size % patch == 0, "patch", f"must divide the image size {size}", patch)
    sizes = {"size": size, "patch": patch, "width": width, "depth": depth, "heads": heads}
    return VisionTransformer(**sizes, dropout=dropout, classes=classes, channels=channels)
