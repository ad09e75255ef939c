"""A residual network for one-dimensional signals such as MNIST-1D; our own design.

The CIFAR residual network of depth 6n+2 with one-dimensional convolutions of width 5 and option-A shortcuts.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowland.models.blocks import check_depth, check_sizes, initialize_convolutions


class SignalBlock(nn.Module):
    """Two convolutions of width 5 with batch norm, and a parameter-free shortcut unless it is left out."""

    def __init__(self, inputs: int, outputs: int, stride: int, *, skip: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(inputs, outputs, 5, stride, padding=2, bias=False)
        self.bn1 = nn.BatchNorm1d(outputs)
        self.conv2 = nn.Conv1d(outputs, outputs, 5, padding=2, bias=False)
        self.bn2 = nn.BatchNorm1d(outputs)
        self.extra, self.stride, self.skip = outputs - inputs, stride, skip

    def forward(self, x: Tensor) -> Tensor:
        """Return the activations after the block."""
        out: Tensor = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(out + F.pad(x[:, :, :: self.stride], (0, 0, 0, self.extra)) if self.skip else out)


class SignalResNet(nn.Module):
    """A residual network of three stages for signals; build it by `resnet1d`."""

    def __init__(self, blocks: int, *, skip: bool, width: int, classes: int, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(channels, width, 5, padding=2, bias=False)
        self.bn1 = nn.BatchNorm1d(width)
        sizes = [width] + [width * 2**stage for stage in range(3) for _ in range(blocks)]
        strides = [2 if k in (blocks, 2 * blocks) else 1 for k in range(3 * blocks)]
        pairs = zip(pairwise(sizes), strides, strict=True)
        self.layers = nn.Sequential(*(SignalBlock(*widths, stride, skip=skip) for widths, stride in pairs))
        self.linear = nn.Linear(sizes[-1], classes)
        initialize_convolutions(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [n, classes] of signals [n, channels, length]."""
        out = self.layers(F.relu(self.bn1(self.conv1(x))))
        scores: Tensor = self.linear(torch.flatten(F.adaptive_avg_pool1d(out, 1), 1))
        return scores


def resnet1d(
    depth: int = 8, *, skip: bool = True, width: int = 16, classes: int = 10, channels: int = 1
) -> SignalResNet:
    """Build a residual network for signals.

    Args:
        depth: Layers with weights, 6n+2; the default trains in seconds on MNIST-1D.
        skip: False removes every shortcut.
        width: Channels of the first stage.
        classes: Number of outputs.
        channels: Values that the signal has at each time.

    Returns:
        The network, weights drawn from torch's global generator.

    Raises:
        InputError: If the depth is not 6n+2 or a size is not positive.

    Example:
        >>> resnet1d()(torch.zeros(2, 1, 40)).shape
        torch.Size([2, 10])
    """
    check_sizes(depth=depth, width=width, classes=classes, channels=channels)
    blocks = check_depth(depth, 2, "8, 14, 20, ...")
    return SignalResNet(blocks, skip=skip, width=width, classes=classes, channels=channels)
