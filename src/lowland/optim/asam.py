"""Adaptive sharpness-aware minimization (ASAM).

Deviations from the official code (SamsungLabs/ASAM):

1. It scales tensors whose *name* contains "weight", also the weights of norm layers; here the tensors with more than
   one dimension, since an optimizer need not know names. ``scaled="all"`` scales every tensor, as common ports do.
"""

from __future__ import annotations

from typing import ClassVar, Literal, Unpack, final

import torch
from torch import Tensor

from lowland.core.errors import require
from lowland.optim.moves import joint_norm, shards
from lowland.optim.options import AscentKeywords, Base, check_choice
from lowland.optim.parts import Held, Method
from lowland.optim.wrapper import Wrapper

Scaled = Literal["matrices", "all"]


class _ASAM(Method):
    name: ClassVar[str] = "ASAM"

    def __init__(self, rho: float, eta: float, scaled: Scaled) -> None:
        require(eta >= 0, "eta", "must not be negative", eta)
        check_choice("scaled", scaled, Scaled)
        self.eta, self.scaled = eta, scaled
        super().__init__(rho)

    def direction(self, held: Held, parameters: list[Tensor], gradients: list[Tensor]) -> tuple[list[Tensor], Tensor]:
        del held
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

    Memory: 3 sets of weights at the peak of a step, gradients among them; SGD alone takes 1.

    Args:
        rho: Radius in rescaled space, about ten times SAM's. Default 0.5 (paper, CIFAR-10; 1.0 for CIFAR-100).
        eta: Added to |w|. Default 0.01 (paper).
        scaled: ``"matrices"``: tensors with more than one dimension. ``"all"``: every tensor (davda54/sam and
            pytorch_optimizer with ``adaptive=True``, which also have eta = 0).

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
        scaled: Scaled = "matrices",
        **options: Unpack[AscentKeywords],
    ) -> None:
        super().__init__(base, _ASAM(rho, eta, scaled), **options)
