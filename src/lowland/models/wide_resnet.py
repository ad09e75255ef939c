"""Wide residual networks: pre-activation blocks, few layers, many filters.

Zagoruyko and Komodakis, "Wide Residual Networks", 2016, Table 1: depth 6n+4, three stages of n blocks with widths
16k, 32k, 64k; WRN-28-10 has 36.5 million parameters. (Li et al.'s "WRN-56-k" is another network: their ResNet-56 with
k times the filters, `resnet(56, width=16 * k)`.)
"""

from __future__ import annotations

from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from lowland.core.errors import require
from lowland.models.blocks import check_depth, check_sizes, initialize_convolutions, pooled, stage


class WideBlock(nn.Module):
    """Batch norm, ReLU and convolution twice; a 1x1 convolution as shortcut where the width changes."""

    def __init__(self, inputs: int, outputs: int, stride: int, *, dropout: float, skip: bool) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.dropout = nn.Dropout(dropout)
        self.skip = skip
        changes = skip and (inputs != outputs or stride != 1)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        """Return the activations after the block."""
        active = F.relu(self.bn1(x))
        out: Tensor = self.conv2(self.dropout(F.relu(self.bn2(self.conv1(active)))))
        if not self.skip:
            return out
        # where the shape changes, the shortcut starts behind the first activation, as in the authors' code
        return out + (x if self.shortcut is None else self.shortcut(active))


class WideResNet(nn.Module):
    """A wide residual network; build it by `wide_resnet`."""

    def __init__(self, blocks: int, factor: int, *, dropout: float, skip: bool, classes: int, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        block = partial(WideBlock, dropout=dropout, skip=skip)
        self.layer1 = stage(block, 16, 16 * factor, 1, blocks)
        self.layer2 = stage(block, 16 * factor, 32 * factor, 2, blocks)
        self.layer3 = stage(block, 32 * factor, 64 * factor, 2, blocks)
        self.bn = nn.BatchNorm2d(64 * factor)
        self.linear = nn.Linear(64 * factor, classes)
        initialize_convolutions(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [n, classes] of images [n, channels, h, w]."""
        out = self.layer3(self.layer2(self.layer1(self.conv1(x))))
        scores: Tensor = self.linear(pooled(F.relu(self.bn(out))))
        return scores


def wide_resnet(
    depth: int = 28, factor: int = 10, *, dropout: float = 0.0, skip: bool = True, classes: int = 10, channels: int = 3
) -> WideResNet:
    """Build a wide residual network (Zagoruyko and Komodakis 2016).

    Args:
        depth: Layers with weights, 6n+4: 16, 22, 28, 40, ...
        factor: Widening factor k; 10 is the paper's WRN-28-10.
        dropout: Probability between a block's convolutions; 0 in most of the paper, 0.3 in its best runs.
        skip: False removes every shortcut.
        classes: Number of outputs.
        channels: 1 for gray images, 3 for color.

    Returns:
        The network, weights drawn from torch's global generator.

    Raises:
        InputError: If the depth is not 6n+4, a size not positive, or the probability not in [0, 1).

    Example:
        >>> sum(p.numel() for p in wide_resnet(16, 4).parameters())
        2748890
    """
    check_sizes(depth=depth, factor=factor, classes=classes, channels=channels)
    blocks = check_depth(depth, 4, "10, 16, 22, 28, 40, ...")
    require(0.0 <= dropout < 1.0, "dropout", "must be a probability in [0, 1)", dropout)
    return WideResNet(blocks, factor, dropout=dropout, skip=skip, classes=classes, channels=channels)
