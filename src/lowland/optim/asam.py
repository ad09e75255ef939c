"""Adaptive sharpness-aware minimization (ASAM).

Deviations from the official code (SamsungLabs/ASAM):

1. It scales tensors whose *name* contains "weight", also the weights of norm layers; here the tensors with more than
   one dimension, since an optimizer need not know names. ``scaled="all"`` scales every tensor, as common ports do.
"""

from __future__ import annotations

from typing import ClassVar, Literal, Unpack, final

import torch
from torch import Tensor, nn

from lowland.core.errors import InputError
from lowland.optim.bases import Base
from lowland.optim.moves import joint_norm, shards
from lowland.optim.options import AscentKeywords
from lowland.optim.parts import Method
from lowland.optim.wrapper import Wrapper

__all__ = ["ASAM"]


class _ASAM(Method):
    name: ClassVar[str] = "ASAM"

    def __init__(self, rho: float, eta: float, scaled: Literal["matrices", "all"]) -> None:
        if not eta >= 0:
            raise InputError("eta", "must not be negative", eta)
        if scaled not in ("matrices", "all"):
            raise InputError("scaled", 'must be "matrices" or "all"', scaled)
        self.eta, self.scaled = eta, scaled
        super().__init__(rho)

    def direction(self, parameters: list[Tensor], gradients: list[Tensor]) -> tuple[list[Tensor], Tensor]:
        chosen = [i for i, p in enumerate(parameters) if self.scaled == "all" or p.ndim > 1]
        if not chosen:
            return gradients, joint_norm(gradients)
        weights, slopes = shards([parameters[i] for i in chosen]), shards([gradients[i] for i in chosen])
        scales = torch._foreach_abs(weights)
        if self.eta:
            torch._foreach_add_(scales, self.eta)
        torch._foreach_mul_(slopes, scales)
        norm = joint_norm(gradients)
        torch._foreach_mul_(slopes, scales)
        return gradients, norm


@final
class ASAM(Wrapper):
    r"""SAM in a neighborhood that scales with the weights, and so does not change when layers are rescaled.

    .. math:: \epsilon = \rho\, T_w^2 g / \lVert T_w g \rVert_2, \qquad T_w = |w| + \eta

    with T_w = 1 on tensors of at most one dimension. Kwon, Kim, Park and Choi, "ASAM: Adaptive Sharpness-Aware
    Minimization for Scale-Invariant Learning of Deep Neural Networks", ICML 2021, equation 13.

    Args:
        base: An optimizer instance, or several under one norm.
        rho: Radius in rescaled space, about ten times SAM's. Default 0.5 (paper, CIFAR-10; 1.0 for CIFAR-100).
        eta: Added to |w|. Default 0.01 (paper).
        scaled: ``"matrices"``: tensors with more than one dimension. ``"all"``: every tensor (davda54/sam and
            pytorch_optimizer with ``adaptive=True``, which also have eta = 0).
        model: The model whose buffers are protected; None meets it in the perturbed pass.
        **options: How the step behaves, see `AscentOptions`.

    Raises:
        InputError: If an argument breaks a rule.

    Example:
        >>> layer = torch.nn.Linear(2, 1)
        >>> ASAM(torch.optim.SGD(layer.parameters(), lr=0.1)).param_groups[0]["rho"]
        0.5
    """

    def __init__(
        self,
        base: Base,
        rho: float = 0.5,
        *,
        eta: float = 0.01,
        scaled: Literal["matrices", "all"] = "matrices",
        model: nn.Module | None = None,
        **options: Unpack[AscentKeywords],
    ) -> None:
        super().__init__(base, _ASAM(rho, eta, scaled), model=model, **options)
