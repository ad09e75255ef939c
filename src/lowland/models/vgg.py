"""VGG networks for 32x32 images: convolutions in rows, no shortcut anywhere.

Simonyan and Zisserman 2015, cut to nine layers by Li et al., 2018: seven convolutions with batch norm in three groups,
each followed by pooling, one hidden linear layer and one output layer. State dicts of Li et al.'s tool load.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lowland.core.errors import require
from lowland.models.blocks import check_sizes

_GROUPS = {
    9: ((64, 2), (128, 2), (256, 3)),
    16: ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)),
    19: ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4)),
}


class VGG(nn.Module):
    """A network of convolutions in rows; build it by `vgg`."""

    def __init__(self, groups: tuple[tuple[int, int], ...], *, size: int, classes: int, channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = channels
        for width, count in groups:
            for _ in range(count):
                layers += [nn.Conv2d(inputs, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
                inputs = width
            layers.append(nn.MaxPool2d(2, ceil_mode=True))
            size = (size + 1) // 2
        self.features = nn.Sequential(*layers)
        self.fc = nn.Sequential(nn.Linear(inputs * size * size, inputs), nn.BatchNorm1d(inputs), nn.ReLU())
        self.classifier = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [n, classes] of images [n, channels, size, size]."""
        scores: Tensor = self.classifier(self.fc(torch.flatten(self.features(x), 1)))
        return scores


def vgg(depth: int = 9, *, narrow: int = 1, size: int = 32, classes: int = 10, channels: int = 3) -> VGG:
    """Build VGG-9, -16 or -19 for small images (Li et al. 2018).

    Args:
        depth: Layers with weights: 9, 16 or 19.
        narrow: Divides every width; 1 is the published network.
        size: Pixels of an image's side.
        classes: Number of outputs.
        channels: 1 for gray images, 3 for color.

    Returns:
        The network, weights drawn from torch's global generator.

    Raises:
        InputError: If the depth is unknown or a size not positive.

    Example:
        >>> sum(isinstance(m, nn.Conv2d | nn.Linear) for m in vgg(9).modules())
        9
    """
    check_sizes(narrow=narrow, size=size, classes=classes, channels=channels)
    require(depth in _GROUPS, "depth", "must be 9, 16 or 19", depth)
    require(64 % narrow == 0, "narrow", "must divide 64", narrow)
    groups = tuple((width // narrow, count) for width, count in _GROUPS[depth])
    return VGG(groups, size=size, classes=classes, channels=channels)
