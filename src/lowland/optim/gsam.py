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
from torch import Tensor, nn

from lowland.core.errors import InputError
from lowland.optim.bases import Base
from lowland.optim.moves import joint_norm, scale_all, shards
from lowland.optim.options import AscentKeywords, check_rho
from lowland.optim.parts import Method, rate_of
from lowland.optim.wrapper import Wrapper

__all__ = ["GSAM"]


class _GSAM(Method):
    name: ClassVar[str] = "GSAM"
    keeps_first: ClassVar[bool] = True
    combines: ClassVar[bool] = True

    def __init__(
        self, rho: float, rho_min: float | None, alpha: float, rate_max: float | None, rate_min: float
    ) -> None:
        if not 0 <= alpha <= 1:
            raise InputError("alpha", "must lie in [0, 1]", alpha)
        if rho_min is not None and check_rho(rho_min) > rho:
            raise InputError("rho_min", "must not exceed `rho`", rho_min)
        if rate_max is not None and rate_max <= rate_min:
            raise InputError("rate_max", "must exceed `rate_min`", rate_max)
        self.rho_min, self.alpha, self.rate_max, self.rate_min = rho_min, alpha, rate_max, rate_min
        super().__init__(rho)

    def check_group(self, group: Mapping[str, Any]) -> None:
        super().check_group(group)
        if self.rho_min is not None and group.get("lr", 0.0) is None:
            raise InputError("base", "must have a learning rate that rho can follow", None, "pass rho_min=None")

    def adopt_group(self, group: dict[str, Any]) -> None:
        super().adopt_group(group)
        group.setdefault("rate_max", rate_of(group, 0.0) if self.rate_max is None else self.rate_max)

    def radius(self, group: Mapping[str, Any], step: int) -> float:
        high = super().radius(group, step)
        if self.rho_min is None or high == 0:
            return high
        low, rate = self.rho_min * self.options.factor(step), rate_of(group, 0.0)
        span = float(group.get("rate_max", rate)) - self.rate_min
        share = (rate - self.rate_min) / span if span > 0 else 1.0
        return low + (high - low) * min(max(share, 0.0), 1.0)

    @torch.no_grad()
    def combine(self, first: list[Tensor], second: list[Tensor], norm: Tensor | None) -> None:
        # With d = g - g_p and c = g.g_p / ||g_p||^2, the step is (1 + alpha (c - 1)) g_p - alpha d, and c - 1 follows
        # from three norms without fresh memory: 2 (c - 1) = (||g|| - ||d||) (||g|| + ||d||) / ||g_p||^2 - 1.
        if not self.alpha or not first:
            return
        norm = joint_norm(first) if norm is None else norm
        length = joint_norm(second)
        torch._foreach_sub_(shards(first), shards(second))
        apart = joint_norm(first)
        square = (norm - apart) / length * ((norm + apart) / length)
        scale = torch.nan_to_num(square, nan=1.0, posinf=1.0, neginf=1.0) * (self.alpha / 2) + (1 - self.alpha / 2)
        scale_all(second, scale)
        torch._foreach_add_(shards(second), shards(first), alpha=-self.alpha)


@final
class GSAM(Wrapper):
    r"""SAM that also descends on the gap between the perturbed and the plain loss.

    .. math:: g_{\text{step}} = g_p - \alpha\, g_\perp, \qquad g_\perp = g - \frac{g \cdot g_p}{\lVert g_p \rVert^2} g_p

    with g the gradient at w and g_p that at w + epsilon, and

    .. math:: \rho_t = \rho_{\min} + (\rho_{\max} - \rho_{\min})
        \frac{\eta_t - \eta_{\min}}{\eta_{\max} - \eta_{\min}}

    Zhuang et al., "Surrogate Gap Minimization Improves Sharpness-Aware Training", ICLR 2022, algorithm 1.

    Args:
        base: An optimizer instance, or several under one norm.
        rho: Radius at the highest learning rate. Default 0.6 (official configuration of ViT-B/32 on ImageNet).
        rho_min: Radius at the lowest learning rate; None: rho throughout. Default 0.1 (as above).
        alpha: Weight of the orthogonal part. Default 0.6 (as above); 0 with ``rho_min=None`` is SAM.
        rate_max: Highest learning rate; None: each group's rate when it was added.
        rate_min: Lowest learning rate. Default 0.
        model: The model whose buffers are protected; None meets it in the perturbed pass.
        **options: How the step behaves, see `AscentOptions`.

    Raises:
        InputError: If an argument breaks a rule.

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
        model: nn.Module | None = None,
        **options: Unpack[AscentKeywords],
    ) -> None:
        super().__init__(base, _GSAM(rho, rho_min, alpha, rate_max, rate_min), model=model, **options)
