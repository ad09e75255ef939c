"""Weights rounded to the nearest of 2^b values, each channel or group of its entries with a scale of its own.

Symmetric: ``s = max|w| / (2^(b-1) - 1)``, ``q = round(w / s)``. Asymmetric, over the range ``[min(w, 0), max(w, 0)]``:
``s = range / (2^b - 1)``, ``z = round(-min / s)``, ``q = round(w / s) + z``. Ties go to the even number, as in torch.
Activations, biases and norm parameters stay as they are.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from lowland.core.errors import require
from lowland.core.units import UnitRule

_ROWS: Final = UnitRule("filter")


@torch.no_grad()
def rounded(
    weight: Tensor, bits: int, *, rule: UnitRule = _ROWS, group: int | None = None, symmetric: bool = True
) -> Tensor:
    """Return a weight rounded to the nearest and back.

    Args:
        weight: Floating-point weight.
        bits: Bits of a value, at least 2.
        rule: What a channel is. Default: a row of axis 0.
        group: Entries of a channel that share a scale, in order; None (default) for the whole channel.
        symmetric: One scale (default), or a scale and a zero point.

    Returns:
        A new tensor of the weight's type; a channel of zeros stays.

    Example:
        >>> rounded(torch.tensor([[-7.0, 0.4, 3.6]]), bits=4).tolist()
        [[-7.0, 0.0, 4.0]]
    """
    require(bits >= 2, "bits", "must be at least 2", bits)
    require(group is None or group >= 1, "group", "must be at least 1", group)
    require(weight.is_floating_point(), "weight", "must be a floating-point tensor", str(weight.dtype))
    rows = rule.split(weight.detach()).to(torch.promote_types(weight.dtype, torch.float32))
    parts = [_on_grid(part, bits, symmetric) for part in torch.split(rows, group or rows.shape[1], dim=1)]
    return torch.empty_like(weight).copy_(rule.join(torch.cat(parts, 1), weight.shape))


def _on_grid(rows: Tensor, bits: int, symmetric: bool) -> Tensor:
    if symmetric:
        most = 2 ** (bits - 1) - 1
        scale = rows.abs().amax(1, keepdim=True) / most
        usable = torch.where(scale > 0, scale, torch.ones_like(scale))
        even: Tensor = (rows / usable).round().clamp(-most, most) * scale
        return even
    low, high = rows.amin(1, keepdim=True).clamp(max=0), rows.amax(1, keepdim=True).clamp(min=0)
    scale = (high - low) / (2**bits - 1)
    usable = torch.where(scale > 0, scale, torch.ones_like(scale))
    zero = (-low / usable).round()
    found: Tensor = (((rows / usable).round() + zero).clamp(0, 2**bits - 1) - zero) * scale
    return found
