"""The CIFAR residual network of depth 6n+2, with and without shortcuts.

He et al., "Deep Residual Learning", 2016, section 4.2: a 3x3 convolution, then three stages of n blocks
with widths w, 2w, 4w (w = 16) and strides 1, 2, 2, global average pooling and one linear layer. Shortcuts
are parameter-free there (option A): spatial subsampling and zero-padded channels. Li et al., 2018, train the same
networks with the shortcuts removed (``skip=False``) and with k times the filters (``width=16 * k``); their tool
projects where a stage begins (``shortcut="projection"``, option B), and its state dicts load into these classes.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowland.core.errors import InputError
from lowland.core.names import unknown

__all__ = ["BasicBlock", "CifarResNet", "Shortcut", "resnet"]

Shortcut = Literal["padding", "projection"]


class PaddedShortcut(nn.Module):
    """Every `stride`-th pixel, and new channels that are zero (option A); it has no parameters."""

    def __init__(self, extra: int, stride: int) -> None:
        super().__init__()
        self.extra, self.stride = extra, stride

    def forward(self, x: Tensor) -> Tensor:
        """Return the input at the block's output shape."""
        x = x[:, :, :: self.stride, :: self.stride]
        return F.pad(x, (0, 0, 0, 0, self.extra // 2, self.extra - self.extra // 2))


def make_shortcut(inputs: int, outputs: int, stride: int, kind: Shortcut) -> nn.Module:
    """Build a block's shortcut."""
    if stride == 1 and inputs == outputs:
        return nn.Sequential()
    if kind == "padding":
        return PaddedShortcut(outputs - inputs, stride)
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norm, and a shortcut unless it is left out."""

    expansion = 1

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
    """A residual network of three stages for small images; build it by `resnet`.

    Args:
        blocks: Blocks per stage (n in 6n+2).
        skip: Whether shortcuts exist.
        shortcut: Their kind where the shape changes.
        width: Channels of the first stage.
        classes: Number of outputs.
        channels: Channels of the images.
    """

    def __init__(self, blocks: int, *, skip: bool, shortcut: Shortcut, width: int, classes: int, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)

        def stage(inputs: int, outputs: int, stride: int) -> nn.Sequential:
            first = BasicBlock(inputs, outputs, stride, skip=skip, shortcut=shortcut)
            rest = [BasicBlock(outputs, outputs, 1, skip=skip, shortcut=shortcut) for _ in range(blocks - 1)]
            return nn.Sequential(first, *rest)

        self.layer1 = stage(width, width, 1)
        self.layer2 = stage(width, 2 * width, 2)
        self.layer3 = stage(2 * width, 4 * width, 2)
        self.linear = nn.Linear(4 * width, classes)
        initialize_convolutions(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return class scores.

        Args:
            x: Images, shape [n, channels, h, w]; any size of at least 4 pixels.

        Returns:
            Logits, shape [n, classes].
        """
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.layer3(self.layer2(self.layer1(out)))
        scores: Tensor = self.linear(torch.flatten(F.adaptive_avg_pool2d(out, 1), 1))
        return scores


def initialize_convolutions(model: nn.Module) -> None:
    """Draw the weights of all convolutions from a normal of variance 2 / fan-out (He et al. 2015)."""
    for module in model.modules():
        if isinstance(module, nn.Conv1d | nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def check_sizes(**sizes: int) -> None:
    """Check that sizes are positive integers."""
    for name, value in sizes.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InputError(name, "must be a positive integer", value)


def resnet(
    depth: int = 20, *, skip: bool = True, shortcut: Shortcut = "padding", width: int = 16, classes: int = 10,
    channels: int = 3,
) -> CifarResNet:  # fmt: skip
    """Build the CIFAR residual network of a depth 6n+2 (He et al. 2016, section 4.2).

    Args:
        depth: Layers with weights: 8, 14, 20, 32, 44, 56, 110, ...; 20 is the paper's smallest.
        skip: False removes every shortcut (Li et al. 2018).
        shortcut: Where the shape changes: ``"padding"`` (option A, the paper's) or ``"projection"`` (option B, that of
            Li et al.'s tool).
        width: Channels of the first stage; 16 in the paper, 16 k for Li et al.'s wide networks.
        classes: Number of outputs.
        channels: Channels of the images.

    Returns:
        The network, weights drawn from torch's global generator.

    Raises:
        InputError: If the depth is not 6n+2 or a size is not positive.

    Example:
        >>> sum(p.numel() for p in resnet(20).parameters())
        269722
    """
    check_sizes(depth=depth, width=width, classes=classes, channels=channels)
    if depth < 8 or (depth - 2) % 6:
        raise InputError("depth", "must be 6n+2 with n >= 1 (8, 14, 20, 32, 56, ...)", depth)
    if shortcut not in ("padding", "projection"):
        raise unknown("shortcut", shortcut, ("padding", "projection"))
    return CifarResNet((depth - 2) // 6, skip=skip, shortcut=shortcut, width=width, classes=classes, channels=channels)
