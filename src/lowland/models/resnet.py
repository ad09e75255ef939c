"""The CIFAR residual network of depth 6n+2, with and without shortcuts.

He et al., "Deep Residual Learning", 2016, section 4.2: a 3x3 convolution, then three stages of n blocks
with widths w, 2w, 4w (w = 16) and strides 1, 2, 2, global average pooling and one linear layer. Shortcuts
are parameter-free (option A): spatial subsampling and zero-padded channels. Li et al., 2018, train the same
networks with the shortcuts removed (``skip=False``) and with k times the filters (``width=16 * k``).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowland.core.errors import InputError

__all__ = ["BasicBlock", "CifarResNet", "resnet"]


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norm, and a parameter-free shortcut unless it is left out.

    Args:
        inputs: Channels that come in.
        outputs: Channels that go out, at least ``inputs``.
        stride: Stride of the first convolution.
        skip: Whether the shortcut exists.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, *, skip: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.extra, self.skip = stride, outputs - inputs, skip

    def forward(self, x: Tensor) -> Tensor:
        """Return the activations after the block.

        Args:
            x: Shape [n, inputs, h, w].

        Returns:
            Shape [n, outputs, ceil(h / stride), ceil(w / stride)].
        """
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.shortcut(x) if self.skip else out)

    def shortcut(self, x: Tensor) -> Tensor:
        """Return the input at the output's shape: every ``stride``-th pixel, new channels zero.

        Args:
            x: Shape [n, inputs, h, w].

        Returns:
            Shape [n, outputs, ceil(h / stride), ceil(w / stride)].
        """
        if self.stride > 1:
            x = x[:, :, :: self.stride, :: self.stride]
        if self.extra:
            x = F.pad(x, (0, 0, 0, 0, self.extra // 2, self.extra - self.extra // 2))
        return x


class CifarResNet(nn.Module):
    """A residual network of three stages for small images; build it by `resnet`.

    Args:
        blocks: Blocks per stage (n in 6n+2).
        skip: Whether shortcuts exist.
        width: Channels of the first stage.
        classes: Number of outputs.
        channels: Channels of the images.
    """

    def __init__(self, blocks: int, *, skip: bool, width: int, classes: int, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        widths = (width, 2 * width, 4 * width)
        self.layer1 = _stage(width, widths[0], blocks, 1, skip=skip)
        self.layer2 = _stage(widths[0], widths[1], blocks, 2, skip=skip)
        self.layer3 = _stage(widths[1], widths[2], blocks, 2, skip=skip)
        self.linear = nn.Linear(widths[2], classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

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


def _stage(inputs: int, outputs: int, blocks: int, stride: int, *, skip: bool) -> nn.Sequential:
    first = BasicBlock(inputs, outputs, stride, skip=skip)
    rest = [BasicBlock(outputs, outputs, 1, skip=skip) for _ in range(blocks - 1)]
    return nn.Sequential(first, *rest)


def resnet(depth: int = 20, *, skip: bool = True, width: int = 16, classes: int = 10, channels: int = 3) -> CifarResNet:
    """Build the CIFAR residual network of a depth 6n+2 (He et al. 2016, section 4.2).

    Args:
        depth: Layers with weights: 8, 14, 20, 32, 44, 56, 110, ...; 20 is the paper's smallest.
        skip: False removes every shortcut (Li et al. 2018).
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
    if depth < 8 or (depth - 2) % 6:
        raise InputError("depth", "must be 6n+2 with n >= 1 (8, 14, 20, 32, 56, ...)", depth)
    for name, value in (("width", width), ("classes", classes), ("channels", channels)):
        if value < 1:
            raise InputError(name, "must be positive", value)
    return CifarResNet((depth - 2) // 6, skip=skip, width=width, classes=classes, channels=channels)
