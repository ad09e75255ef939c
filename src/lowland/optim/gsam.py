"""Surrogate-gap guided sharpness-aware minimization (GSAM).

Deviations from the official PyTorch port (juntang-zhuang/GSAM):

1. rho follows the learning rate as in the paper; the port leaves that to a scheduler that is not saved.
2. The decomposition is made from gradients averaged over ranks, also after a local ascent; the port decomposes on every
   rank and adds the results.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Unpack, final

import torch
from torch import Tensor

from lowland.core.errors import InputError, require
from lowland.optim.moves import add_scaled, joint_norm, shards
from lowland.optim.options import AscentKeywords, Base, check_rho, check_share
from lowland.optim.parts import Method, rate_of
from lowland.optim.wrapper import Wrapper


class _GSAM(Method):
    name: ClassVar[str] = "GSAM"
    keeps_first: ClassVar[bool] = True
    combines: ClassVar[bool] = True

    def __init__(
        self, rho: float, rho_min: float | None, alpha: float, rate_max: float | None, rate_min: float
    ) -> None:
        check_share("alpha", alpha)
        require(rho_min is None or check_rho(rho_min) <= rho, "rho_min", "must not exceed `rho`", rho_min)
        require(rate_max is None or rate_max > rate_min, "rate_max", "must exceed `rate_min`", rate_max)
        self.rho_min, self.alpha, self.rate_max, self.rate_min = rho_min, alpha, rate_max, rate_min
        super().__init__(rho)

    def check_group(self, group: Mapping[str, Any]) -> None:
        super().check_group(group)
        if self.rho_min is not None and group.get("lr", 0.0) is None:
            raise InputError("base", "must have a learning rate that rho can follow", None, "pass rho_min=None")

    def adopt_group(self, group: dict[str, Any]) -> None:
        super().adopt_group(group)
        begun = float(group.get("initial_lr", rate_of(group, 0.0)))  # of a scheduler that is there already
        group.setdefault("rate_max", begun if self.rate_max is None else self.rate_max)

    def radius(self, group: Mapping[str, Any], step: int) -> float:
        high = super().radius(group, step)
        if self.rho_min is None or high == 0:
            return high
        low, rate = self.rho_min * self.options.factor(step), rate_of(group, 0.0)
        known = self.rate_max is None and "max_lr" in group  # a cycle's, whether it was attached before or after
        span = float(group["max_lr"] if known else group.get("rate_max", rate)) - self.rate_min
        share = (rate - self.rate_min) / span if span > 0 else 1.0
        return low + (high - low) * min(max(share, 0.0), 1.0)

    def combine(self, first: list[Tensor], second: list[Tensor], norm: Tensor | None) -> list[Tensor]:
        # With d = g - g_p and c = g.g_p / ||g_p||^2, the step is (1 + alpha (c - 1)) g_p - alpha d, and c - 1 follows
        # from three norms without fresh memory: 2 (c - 1) = (||g|| - ||d||) (||g|| + ||d||) / ||g_p||^2 - 1.
        if not self.alpha or not first:
            return second
        norm = joint_norm(first) if norm is None else norm
        length = joint_norm(second)
        torch._foreach_sub_(shards(first), shards(second))
        apart = joint_norm(first)
        share = self.alpha / 2
        rest = length.new_full((), 1 - share)
        scale = torch.addcmul(rest, (norm - apart) / length, (norm + apart) / length, value=share)
        torch._foreach_mul_(shards(first), -self.alpha)
        add_scaled(first, second, scale)  # nothing is added where it is 0 / 0: there g_p is 0
        return first


@final
class GSAM(Wrapper):
    r"""SAM that also descends on the gap between the perturbed and the plain loss.

    .. math:: g_{\text{step}} = g_p - \alpha\, g_\perp, \qquad g_\perp = g - \frac{g \cdot g_p}{\lVert g_p \rVert^2} g_p

    with g the gradient at w and g_p that at w + epsilon, and

    .. math:: \rho_t = \rho_{\min} + (\rho_{\max} - \rho_{\min})
        \frac{\eta_t - \eta_{\min}}{\eta_{\max} - \eta_{\min}}

    Zhuang et al., "Surrogate Gap Minimization Improves Sharpness-Aware Training", ICLR 2022, algorithm 1.

    Memory: 3 sets of weights at the peak of a step, gradients among them; SGD alone takes 1.

    Args:
        rho: Radius at the highest learning rate. Default 0.6 (official configuration of ViT-B/32 on ImageNet).
        rho_min: Radius at the lowest learning rate; None: rho throughout. Default 0.1 (as above).
        alpha: Weight of the orthogonal part. Default 0.6 (as above); 0 with ``rho_min=None`` is SAM.
        rate_max: Highest learning rate; None: of OneCycleLR and CyclicLR their ``max_lr``, else each group's rate when
            it was added, before schedulers changed it.
        rate_min: Lowest learning rate. Default 0.

    Example:
        >>> layer = torch.nn.Linear(2, 1)
        >>> GSAM(torch.optim.SGD(layer.parameters(), lr=0.1), rho=0.05, rho_min=None).alpha
        0.6
    """

    def __init__(
        self,
        base: Base,
        rho: float = 0.6,
        *,
        rho_min: float | None = 0.1,
        alpha: float = 0.6,
        rate_max: float | None = None,
        rate_min: float = 0.0,
        **options: Unpack[AscentKeywords],
    ) -> None:
        super().__init__(base, _GSAM(rho, rho_min, alpha, rate_max, rate_min), **options)
