"""Normalization of directions, so that pictures of different networks can be compared.

Li et al. 2018, Section 4: d_ij <- d_ij / ||d_ij|| * ||w_ij|| for filter j of layer i. What a filter is for each kind of
tensor is decided in `lowland.core.units`.

Deviations from the authors' code:
1. Units follow the output axis of every layer type (theirs: axis 0 always, wrong for transposed convolutions).
2. No constant is added to ||d_ij||; a unit of norm 0, in the weights or in the direction, does not move.
3. Biases and norm parameters are left alone unless asked for; then each such tensor is one unit (theirs copies the
   weights into the direction, the same for both axes).
"""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from lowland.core.errors import InputError
from lowland.core.units import UnitRule

Normalization: TypeAlias = Literal["filter", "layer", "weight", "none"]


@torch.no_grad()
def normalize(
    direction: Tensor,
    weight: Tensor,
    rule: UnitRule,
    normalization: Normalization = "filter",
    *,
    move_fixed: bool = False,
) -> Tensor:
    """Scale one tensor of a direction by the weights at its place.

    Args:
        direction: Any direction, of the weight's shape.
        weight: The weights around which the surface is drawn.
        rule: How the tensor is cut into units.
        normalization: ``"filter"``: every unit gets the norm of the weights' unit (Li et al. 2018, default there);
            ``"layer"``: the whole tensor gets the norm of the weights; ``"weight"``: every entry is multiplied by its
            weight; ``"none"``: as given.
        move_fixed: Also move biases and norm parameters. Default False, as in the paper's pictures.

    Returns:
        A new tensor of the weight's type.

    Example:
        >>> normalize(torch.ones(2, 4), torch.tensor([[3.0] * 4, [0.0] * 4]), UnitRule("filter")).norm(dim=1).tolist()
        [6.0, 0.0]
    """
    if normalization not in (known := get_args(Normalization)):
        raise InputError("normalization", f"must be one of {', '.join(known)}", normalization)
    if rule.kind == "fixed" and not move_fixed:
        return torch.zeros_like(weight)
    wide = torch.promote_types(weight.dtype, torch.float32)
    values, weights = direction.to(wide), weight.detach().to(wide)
    if normalization == "weight":
        values = values * weights
    elif normalization != "none":
        rule = rule if normalization == "filter" else UnitRule("tensor")
        values = rule.matched(values, weights)
    # the weight's memory layout: in-place moves are several times slower between two layouts
    return torch.empty_like(weight).copy_(values)
