"""The CIFAR residual network of depth 6n+2, with and without shortcuts.

He et al., "Deep Residual Learning", 2016, section 4.2: a 3x3 convolution, then three stages of n blocks
with widths w, 2w, 4w (w = 16) and strides 1, 2, 2, global average pooling and one linear layer. Shortcuts
are parameter-free there (option A): spatial subsampling and zero-padded channels. Li et al., 2018, train the same
networks with the shortcuts removed (``skip=False``) and with k times the filters (``width=16 * k``); their tool
projects where a stage begins (``shortcut="projection"``, option B), and its state dicts load into these classes.
"""

from __future__ import annotations

from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from lowland.core.names import unknown
from lowland.models.blocks import (
    Shortcut,
    check_depth,
    check_sizes,
    initialize_convolutions,
    make_shortcut,
    pooled,
    stage,
)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norm, and a shortcut unless it is left out."""

    def __init__(self, inputs: int, outputs: int, stride: int, *, skip: bool, shortcut: Shortcut) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = make_shortcut(inputs, outputs, stride, shortcut) if skip else None

    def forward(self, x: Tensor) -> Tensor:
        """Return the activations after the block."""
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(out if self.shortcut is None else out + self.shortcut(x))


class CifarResNet(nn.Module):
    """A residual network of three stages for small images; build it by `resnet`."""

    def __init__(self, blocks: int, *, skip: bool, shortcut: Shortcut, width: int, classes: int, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        block = partial(BasicBlock, skip=skip, shortcut=shortcut)
        self.layer1 = stage(block, width, width, 1, blocks)
        self.layer2 = stage(block, width, 2 * width, 2, blocks)
        self.layer3 = stage(block, 2 * width, 4 * width, 2, blocks)
        self.linear = nn.Linear(4 * width, classes)
        initialize_convolutions(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [n, classes] of images [n, channels, h, w] of any size of at least 4 pixels."""
        out = F.relu(self.bn1(self.conv1(x)))
        scores: Tensor = self.linear(pooled(self.layer3(self.layer2(self.layer1(out)))))
        return scores


def resnet(
    depth: int = 20,
    *,
    skip: bool = True,
    shortcut: Shortcut = "padding",
    width: int = 16,
    classes: int = 10,
    channels: int = 3,
) -> CifarResNet:
    """Build the CIFAR residual network of a depth 6n+2 (He et al. 2016, section 4.2).

    Args:
        depth: Layers with weights: 8, 14, 20, 32, 44, 56, 110, ...; 20 is the paper's smallest.
        skip: False removes every shortcut (Li et al. 2018).
        shortcut: Where the shape changes: ``"padding"`` (option A, the paper's) or ``"projection"`` (option B, that of
            Li et al.'s tool).
        width: Channels of the first stage; 16 in the paper, 16 k for Li et al.'s wide networks.
        classes: Number of outputs.
        channels: 1 for gray images, 3 for color.

    Returns:
        The network, weights drawn from torch's global generator.

    Raises:
        InputError: If the depth is not 6n+2 or a size is not positive.

    Example:
        >>> sum(p.numel() for p in resnet(20).parameters())
        269722
    """
    check_sizes(depth=depth, width=width, classes=classes, channels=channels)
    blocks = check_depth(depth, 2, "8, 14, 20, 32, 56, ...")
    if shortcut not in ("padding", "projection"):
        raise unknown("shortcut", shortcut, ("padding", "projection"))
    return CifarResNet(blocks, skip=skip, shortcut=shortcut, width=width, classes=classes, channels=channels)
