"""ResNet-18, -34 and -50, with the stem for small images or ImageNet's.

He et al., "Deep Residual Learning", 2016, Table 1: four stages of widths 64 to 512, projection shortcuts (option B).
The stem for small images is one 3x3 convolution of stride 1 without pooling, as in common CIFAR code and in the
tool of Li et al. 2018, whose state dicts load into these classes.

Deviation: without shortcuts (``skip=False``) the bottleneck block of Li et al.'s tool has no activation after its last
batch norm; here every block ends in one.
"""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from lowland.core.names import unknown
from lowland.models.blocks import check_sizes, initialize_convolutions, make_shortcut, pooled, stage
from lowland.models.resnet import BasicBlock

_STAGES = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions with batch norm; the last one widens four times."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int, *, skip: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.shortcut = make_shortcut(inputs, 4 * width, stride, "projection") if skip else None

    def forward(self, x: Tensor) -> Tensor:
        """Return the activations after the block."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn3(self.conv3(F.relu(self.bn2(self.conv2(out)))))
        return F.relu(out if self.shortcut is None else out + self.shortcut(x))


class ImageNetResNet(nn.Module):
    """A residual network of four stages; build it by `imagenet_resnet`."""

    def __init__(
        self,
        blocks: tuple[int, ...],
        *,
        bottleneck: bool,
        skip: bool,
        stem: str,
        width: int,
        classes: int,
        channels: int,
    ) -> None:
        super().__init__()
        large = stem == "imagenet"
        self.conv1 = nn.Conv2d(channels, width, 7 if large else 3, 2 if large else 1, 3 if large else 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.pool = nn.MaxPool2d(3, 2, 1) if large else nn.Identity()
        wider = Bottleneck.expansion if bottleneck else 1
        block = partial(Bottleneck, skip=skip) if bottleneck else partial(BasicBlock, skip=skip, shortcut="projection")
        self.layer1 = stage(block, width, width, 1, blocks[0], wider)
        self.layer2 = stage(block, width * wider, 2 * width, 2, blocks[1], wider)
        self.layer3 = stage(block, 2 * width * wider, 4 * width, 2, blocks[2], wider)
        self.layer4 = stage(block, 4 * width * wider, 8 * width, 2, blocks[3], wider)
        self.linear = nn.Linear(8 * width * wider, classes)
        initialize_convolutions(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [n, classes] of images [n, channels, h, w]."""
        out = self.pool(F.relu(self.bn1(self.conv1(x))))
        out = self.layer4(self.layer3(self.layer2(self.layer1(out))))
        scores: Tensor = self.linear(pooled(out))
        return scores


def imagenet_resnet(
    depth: int = 18,
    *,
    skip: bool = True,
    stem: Literal["cifar", "imagenet"] = "cifar",
    width: int = 64,
    classes: int = 10,
    channels: int = 3,
) -> ImageNetResNet:
    """Build ResNet-18, -34, -50, -101 or -152 (He et al. 2016, Table 1).

    Args:
        depth: Layers with weights: 18, 34, 50, 101 or 152; bottleneck blocks from 50 on.
        skip: False removes every shortcut (Li et al. 2018).
        stem: ``"cifar"`` for small images, ``"imagenet"`` for 7x7 stride 2 and pooling.
        width: Channels of the first stage; 64 in the paper.
        classes: Number of outputs.
        channels: 1 for gray images, 3 for color.

    Returns:
        The network, weights drawn from torch's global generator.

    Raises:
        InputError: If the depth or the stem is unknown or a size is not positive.

    Example:
        >>> sum(p.numel() for p in imagenet_resnet(18).parameters())
        11173962
    """
    check_sizes(width=width, classes=classes, channels=channels)
    if depth not in _STAGES:
        raise unknown("depth", depth, map(str, _STAGES))
    if stem not in ("cifar", "imagenet"):
        raise unknown("stem", stem, ("cifar", "imagenet"))
    return ImageNetResNet(
        _STAGES[depth], bottleneck=depth >= 50, skip=skip, stem=stem, width=width, classes=classes, channels=channels
    )
