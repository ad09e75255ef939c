"""Surrogate-gap guided sharpness-aware minimization (GSAM).

Deviations from the official PyTorch port (juntang-zhuang/GSAM):

1. rho follows the learning rate as in the paper; the port leaves that to a scheduler that is not saved.
2. The decomposition is made from gradients averaged over ranks, also after a local ascent; the port decomposes on every
   rank and adds the results.
"""

from __future__ import annotations

from typing import Any, ClassVar, Unpack

import torch
from torch import Tensor, nn

from lowland.core.errors import InputError
from lowland.optim.ascent import Ascent
from lowland.optim.bases import Base
from lowland.optim.moves import joint_norm, scale_all, shards
from lowland.optim.options import AscentKeywords, check_rho

__all__ = ["GSAM"]


class GSAM(Ascent):
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
        model: The model whose buffers are protected; None finds it by its parameters.
        **options: How the step behaves, see `AscentOptions`.

    Raises:
        InputError: If an argument breaks a rule.

    Example:
        >>> layer = torch.nn.Linear(2, 1)
        >>> GSAM(torch.optim.SGD(layer.parameters(), lr=0.1), rho=0.05, rho_min=None).alpha
        0.6
    """

    method: ClassVar[str] = "GSAM"
    keeps_first: ClassVar[bool] = True
    combines: ClassVar[bool] = True

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
        if not 0 <= alpha <= 1:
            raise InputError("alpha", "must lie in [0, 1]", alpha)
        if rho_min is not None and check_rho(rho_min) > rho:
            raise InputError("rho_min", "must not exceed `rho`", rho_min)
        if rate_max is not None and rate_max <= rate_min:
            raise InputError("rate_max", "must exceed `rate_min`", rate_max)
        self.rho_min, self.alpha, self.rate_max, self.rate_min = rho_min, alpha, rate_max, rate_min
        super().__init__(base, rho, model=model, **options)

    def _adopt_group(self, group: dict[str, Any]) -> None:
        super()._adopt_group(group)
        group.setdefault("rate_max", float(group["lr"]) if self.rate_max is None else self.rate_max)

    def _radius(self, group: dict[str, Any]) -> float:
        high = super()._radius(group)
        if self.rho_min is None or high == 0:
            return high
        low = self.rho_min * self._factor()
        span = float(group.get("rate_max", group["lr"])) - self.rate_min
        share = (float(group["lr"]) - self.rate_min) / span if span > 0 else 1.0
        return low + (high - low) * min(max(share, 0.0), 1.0)

    def _direction(self, parameters: list[Tensor], gradients: list[Tensor]) -> tuple[list[Tensor], Tensor]:
        directions, norm = super()._direction(parameters, gradients)
        options = self.options
        whole = options.norm == "global" and options.weight_decay == "excluded" and options.distributed == "synced"
        present = sum(p.grad is not None for p in self._held.parameters())
        self._held.scratch.length = norm if whole and len(gradients) == present else None
        return directions, norm

    def _after_second(self) -> None:
        first = self._held.scratch.first
        parameters = [p for p in self._held.parameters() if p in first or p.grad is not None]
        for parameter in parameters:  # a pass that did not reach a parameter has the gradient 0 there
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            if parameter not in first:
                first[parameter] = torch.zeros_like(parameter)
        plain = [first[p] for p in parameters]
        if self.options.distributed == "local":
            self._average(plain)  # else every rank would take another step
        perturbed = [p.grad for p in parameters if p.grad is not None]
        combine(plain, perturbed, self.alpha, self._held.scratch.length)


@torch.no_grad()
def combine(plain: list[Tensor], perturbed: list[Tensor], alpha: float, norm: Tensor | None = None) -> None:
    r"""Turn perturbed gradients into those of GSAM, without fresh memory.

    With d = g - g_p and c = g.g_p / ||g_p||^2, the step is (1 + alpha (c - 1)) g_p - alpha d, and c - 1 follows from
    three norms: 2 (c - 1) = (||g|| - ||d||) (||g|| + ||d||) / ||g_p||^2 - 1.

    Args:
        plain: Gradients at the weights; overwritten by d.
        perturbed: Gradients at the perturbed weights; become the step's.
        alpha: Weight of the orthogonal part.
        norm: ||g|| where it is known.
    """
    if not alpha or not plain:
        return
    norm = joint_norm(plain) if norm is None else norm
    length = joint_norm(perturbed)
    torch._foreach_sub_(shards(plain), shards(perturbed))
    apart = joint_norm(plain)
    square = (norm - apart) / length * ((norm + apart) / length)
    scale = torch.nan_to_num(square, nan=1.0, posinf=1.0, neginf=1.0) * (alpha / 2) + (1 - alpha / 2)
    scale_all(perturbed, scale)
    torch._foreach_add_(shards(perturbed), shards(plain), alpha=-alpha)
