"""PyramidNet: the width grows a little in every block instead of doubling at each stage.

Han, Kim and Kim, "Deep Pyramidal Residual Networks", 2017, equation 3 (additive): block k of N has
floor(16 + alpha k / N) channels; blocks are norm-conv-norm-ReLU-conv-norm with zero-padded shortcuts
(section 3.3). PyramidNet-110 with alpha=270 has 28.3 million parameters (their Table 4).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from lowland.models.blocks import check_depth, check_sizes, initialize_convolutions, pooled


class PyramidBlock(nn.Module):
    """One residual block that widens."""

    def __init__(self, inputs: int, outputs: int, stride: int, *, skip: bool) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.extra, self.stride, self.skip = outputs - inputs, stride, skip

    def forward(self, x: Tensor) -> Tensor:
        """Return the activations after the block."""
        out: Tensor = self.bn3(self.conv2(F.relu(self.bn2(self.conv1(self.bn1(x))))))
        if not self.skip:
            return out
        if self.stride > 1:
            x = F.avg_pool2d(x, self.stride, ceil_mode=True)
        return out + F.pad(x, (0, 0, 0, 0, 0, self.extra))


class PyramidNet(nn.Module):
    """A pyramidal network; build it by `pyramidnet`."""

    def __init__(self, blocks: int, widening: int, *, skip: bool, classes: int, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        widths = [16 + widening * k // (3 * blocks) for k in range(3 * blocks + 1)]
        layers = [
            PyramidBlock(widths[k], widths[k + 1], 2 if k in (blocks, 2 * blocks) else 1, skip=skip)
            for k in range(3 * blocks)
        ]
        self.layers = nn.Sequential(*layers)
        self.bn_final = nn.BatchNorm2d(widths[-1])
        self.linear = nn.Linear(widths[-1], classes)
        initialize_convolutions(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [n, classes] of images [n, channels, h, w]."""
        scores: Tensor = self.linear(pooled(F.relu(self.bn_final(self.layers(self.bn1(self.conv1(x)))))))
        return scores


def pyramidnet(
    depth: int = 110, widening: int = 270, *, skip: bool = True, classes: int = 10, channels: int = 3
) -> PyramidNet:
    """Build an additive PyramidNet of basic blocks (Han et al. 2017).

    Args:
        depth: Layers with weights, 6n+2; 110 in the paper.
        widening: What the width grows by from first to last block (alpha); 48, 84 or 270 in the paper.
        skip: False removes every shortcut.
        classes: Number of outputs.
        channels: 1 for gray images, 3 for color.

    Returns:
        The network, weights drawn from torch's global generator.

    Raises:
        InputError: If the depth is not 6n+2 or a size is not positive.

    Example:
        >>> pyramidnet(110, 48).linear.in_features
        64
    """
    check_sizes(depth=depth, widening=widening, classes=classes, channels=channels)
    blocks = check_depth(depth, 2, "8, 14, 20, ..., 110")
    return PyramidNet(blocks, widening, skip=skip, classes=classes, channels=channels)
