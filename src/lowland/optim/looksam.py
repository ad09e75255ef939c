"""LookSAM: the second pass every few steps, its direction used again in between.

Deviations from the paper:

1. The part of the perturbed gradient that is orthogonal to the plain one is kept at unit length: the paper uses its
   direction only, and a unit vector does not depend on the scale of the loss.
"""

from __future__ import annotations

from typing import ClassVar, Literal, Unpack

import torch
from torch import Tensor, nn

from lowland.core.errors import InputError
from lowland.core.params import normalized_scale
from lowland.optim.ascent import Ascent
from lowland.optim.bases import Base
from lowland.optim.moves import add_scaled, copy_all, empty_twin, joint_norm, scale_all, shards
from lowland.optim.options import AscentKeywords

__all__ = ["LookSAM"]


class LookSAM(Ascent):
    r"""SAM every k-th step; the steps between add its last orthogonal direction to the plain gradient.

    .. math:: g_v = g_s - \frac{g_s \cdot g}{\lVert g \rVert^2} g, \qquad
        g \leftarrow g + \alpha \frac{\lVert g \rVert}{\lVert g_v \rVert} g_v

    Liu, Mai, Chen, Hsieh and You, "Towards Efficient and Scalable Sharpness-Aware Minimization", CVPR 2022,
    algorithm 1.

    Args:
        base: An optimizer instance, or several under one norm.
        rho: Length of the ascent. Default 0.05 (SAM's).
        period: k: a second pass in the steps 0, k, 2k, ... Default 5 (paper).
        alpha: Weight of the direction used again. Default 0.7 (paper).
        projection: ``"global"`` over all parameters (paper), or ``"tensor"``: each by itself (pytorch_optimizer).
        model: The model whose buffers are protected; None finds it by its parameters.
        **options: How the step behaves, see `AscentOptions`.

    Raises:
        InputError: If an argument breaks a rule.

    Example:
        >>> layer = torch.nn.Linear(2, 1)
        >>> LookSAM(torch.optim.SGD(layer.parameters(), lr=0.1), period=10).needs_perturbation()
        True
    """

    method: ClassVar[str] = "LookSAM"
    keeps_first: ClassVar[bool] = True
    own: ClassVar[tuple[str, ...]] = ("direction",)

    def __init__(
        self,
        base: Base,
        rho: float = 0.05,
        *,
        period: int = 5,
        alpha: float = 0.7,
        projection: Literal["global", "tensor"] = "global",
        model: nn.Module | None = None,
        **options: Unpack[AscentKeywords],
    ) -> None:
        if period < 1:
            raise InputError("period", "must be at least 1", period)
        if not 0 <= alpha <= 1:
            raise InputError("alpha", "must lie in [0, 1]", alpha)
        if projection not in ("global", "tensor"):
            raise InputError("projection", 'must be "global" or "tensor"', projection)
        self.period, self.alpha, self.projection = period, alpha, projection
        super().__init__(base, rho, model=model, **options)

    def _fresh_tensor(self, name: str, parameter: Tensor) -> Tensor:
        del name
        return empty_twin(parameter).zero_()

    def _wants_pass(self) -> bool:
        return (self.steps - self.options.start) % self.period == 0

    def _sets(self, parameters: list[Tensor]) -> list[list[Tensor]]:
        return [[p] for p in parameters] if self.projection == "tensor" else [parameters]

    def _after_second(self) -> None:
        scratch = self._held.scratch
        both = [p for p in self._held.parameters() if p in scratch.first and p.grad is not None]
        for chosen in self._sets(both):
            reject([scratch.first[p] for p in chosen], [p.grad for p in chosen if p.grad is not None])
        for parameter in both:
            if parameter in scratch.kept:
                scratch.kept[parameter].add_(scratch.first[parameter])
            else:
                scratch.kept[parameter] = scratch.first[parameter]

    def _before_base(self) -> None:
        directions, kept = self._held.tensors["direction"], self._held.scratch.kept
        if kept:
            for chosen in self._sets(list(kept)):
                values = [kept[p] for p in chosen]
                scale_all(values, normalized_scale(joint_norm(values), 1.0))
                copy_all([directions[p] for p in chosen], values)
            return
        moving = [p for p in self._held.parameters() if p.grad is not None]
        for chosen in self._sets(moving):
            gradients = [p.grad for p in chosen if p.grad is not None]
            add_scaled(gradients, [directions[p] for p in chosen], joint_norm(gradients) * self.alpha)


@torch.no_grad()
def reject(plain: list[Tensor], perturbed: list[Tensor]) -> None:
    """Turn plain gradients into the part of the perturbed ones that is orthogonal to them.

    Args:
        plain: Gradients at the weights; overwritten.
        perturbed: Gradients at the perturbed weights.
    """
    # with d = g - g_s and c = g.g_s / ||g||^2: g_s - c g = (1 - c) g_s - c d, and as in GSAM c - 1 needs norms only
    if not plain:
        return
    norm, length = joint_norm(perturbed), joint_norm(plain)
    torch._foreach_sub_(shards(plain), shards(perturbed))
    excess = ((norm / length).square() - (joint_norm(plain) / length).square() - 1) / 2
    scale_all(plain, -1 - excess)
    add_scaled(plain, perturbed, -excess)
