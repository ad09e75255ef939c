"""Densely connected networks for small images: DenseNet-BC-100 and DenseNet-121.

Huang et al., "Densely Connected Convolutional Networks", 2017: each layer sees all maps of its block; BC means a 1x1
bottleneck of 4k maps before each 3x3 convolution of k maps, and transitions that halve the maps. DenseNet-BC-100
(k=12, three blocks of 16) has 0.8 million parameters. State dicts of Li et al.'s tool load into DenseNet-121.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowland.models.blocks import check_sizes, initialize_convolutions, pooled


class DenseLayer(nn.Module):
    """Adds k feature maps to what comes in."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, 4 * growth, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the new maps, followed by the old ones."""
        new = self.conv2(F.relu(self.bn2(self.conv1(F.relu(self.bn1(x))))))
        return torch.cat([new, x], 1)


class Transition(nn.Module):
    """Halves the maps by a 1x1 convolution and the resolution by average pooling."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(inputs)
        self.conv = nn.Conv2d(inputs, outputs, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the smaller maps."""
        return F.avg_pool2d(self.conv(F.relu(self.bn(x))), 2)


class DenseNet(nn.Module):
    """A densely connected network; build it by `densenet`."""

    def __init__(self, blocks: tuple[int, ...], *, growth: int, classes: int, channels: int) -> None:
        super().__init__()
        maps = 2 * growth
        self.conv1 = nn.Conv2d(channels, maps, 3, padding=1, bias=False)
        self.blocks = len(blocks)
        for number, layers in enumerate(blocks, 1):
            dense = nn.Sequential(*(DenseLayer(maps + i * growth, growth) for i in range(layers)))
            setattr(self, f"dense{number}", dense)
            maps += layers * growth
            if number < len(blocks):
                setattr(self, f"trans{number}", Transition(maps, maps // 2))
                maps //= 2
        self.bn = nn.BatchNorm2d(maps)
        self.linear = nn.Linear(maps, classes)
        initialize_convolutions(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [n, classes] of images [n, channels, h, w]."""
        out: Tensor = self.conv1(x)
        for number in range(1, self.blocks + 1):
            out = getattr(self, f"dense{number}")(out)
            if number < self.blocks:
                out = getattr(self, f"trans{number}")(out)
        scores: Tensor = self.linear(pooled(F.relu(self.bn(out))))
        return scores


def densenet(
    blocks: tuple[int, ...] = (16, 16, 16), *, growth: int = 12, classes: int = 10, channels: int = 3
) -> DenseNet:
    """Build a DenseNet-BC for small images (Huang et al. 2017, section 3).

    Args:
        blocks: Layers of each dense block.
        growth: Maps that each layer adds (k).
        classes: Number of outputs.
        channels: 1 for gray images, 3 for color.

    Returns:
        The network, weights drawn from torch's global generator.

    Raises:
        InputError: If a size is not positive.

    Example:
        >>> sum(p.numel() for p in densenet().parameters())
        769162
    """
    check_sizes(growth=growth, classes=classes, channels=channels, blocks=min(blocks, default=0))
    return DenseNet(tuple(blocks), growth=growth, classes=classes, channels=channels)


def densenet_bc100(*, growth: int = 12, classes: int = 10, channels: int = 3) -> DenseNet:
    """Build DenseNet-BC-100 (Huang et al. 2017, Table 2: k=12, 0.8 million parameters); arguments as in `densenet`."""
    return densenet((16, 16, 16), growth=growth, classes=classes, channels=channels)


def densenet121(*, growth: int = 32, classes: int = 10, channels: int = 3) -> DenseNet:
    """Build DenseNet-121 with the stem for small images (Li et al. 2018); arguments as in `densenet`."""
    return densenet((6, 12, 24, 16), growth=growth, classes=classes, channels=channels)
