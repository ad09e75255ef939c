"""What the convolutional networks share: rows of blocks, shortcuts, pooling, initialization and checks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowland.core.errors import InputError

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


def stage(
    block: Callable[[int, int, int], nn.Module], inputs: int, width: int, stride: int, count: int, expansion: int = 1
) -> nn.Sequential:
    """Return blocks in a row, of which the first changes the shape."""
    first = block(inputs, width, stride)
    return nn.Sequential(first, *(block(width * expansion, width, 1) for _ in range(count - 1)))


def pooled(x: Tensor) -> Tensor:
    """Return the mean over all pixels, shape [n, channels]."""
    return torch.flatten(F.adaptive_avg_pool2d(x, 1), 1)


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


def check_depth(depth: int, plus: int, examples: str) -> int:
    """Return n of a depth 6n + plus."""
    if depth < 6 + plus or (depth - plus) % 6:
        raise InputError("depth", f"must be 6n+{plus} with n >= 1 ({examples})", depth)
    return (depth - plus) // 6
