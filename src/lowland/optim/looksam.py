"""LookSAM: the second pass every few steps, its direction used again in between.

Deviations from the paper:

1. The part of the perturbed gradient that is orthogonal to the plain one is kept at unit length: the paper uses its
   direction only, and a unit vector does not depend on the scale of the loss.
"""

from __future__ import annotations

from typing import ClassVar, Literal, Unpack, final

import torch
from torch import Tensor

from lowland.core.params import normalized_scale
from lowland.optim.moves import add_scaled, joint_norm, scale_all, shards
from lowland.optim.options import AscentKeywords, Base, check_choice, check_count, check_share
from lowland.optim.parts import Held, Method
from lowland.optim.passes import own_gradients
from lowland.optim.wrapper import Wrapper

Projection = Literal["global", "tensor"]


class _LookSAM(Method):
    name: ClassVar[str] = "LookSAM"
    keeps_first: ClassVar[bool] = True
    own: ClassVar[tuple[str, ...]] = ("direction",)

    def __init__(self, rho: float, period: int, alpha: float, projection: Projection) -> None:
        check_count("period", period, 1)
        check_share("alpha", alpha)
        check_choice("projection", projection, Projection)
        self.period, self.alpha, self.projection = period, alpha, projection
        super().__init__(rho)

    def wants(self, held: Held) -> bool:
        return (held.steps - self.options.start) % self.period == 0

    def prepare(self, held: Held) -> None:
        directions, kept = dict(zip(*held.own("direction"), strict=True)), held.scratch.kept
        moving = [p for p in held.gradients() if p in directions and (not kept or p in kept)]
        if not kept:
            own_gradients(held, moving)
        for chosen in [[p] for p in moving] if self.projection == "tensor" else [moving]:
            gradients = [p.grad for p in chosen if p.grad is not None]
            along = [directions[p] for p in chosen]
            if kept:
                plain = [kept[p] for p in chosen]
                reject(plain, gradients)
                torch._foreach_zero_(shards(along))
                add_scaled(along, plain, normalized_scale(joint_norm(plain), 1.0))
            else:
                add_scaled(gradients, along, joint_norm(gradients) * self.alpha)


@final
class LookSAM(Wrapper):
    r"""SAM every k-th step; the steps between add its last orthogonal direction to the plain gradient.

    .. math:: g_v = g_s - \frac{g_s \cdot g}{\lVert g \rVert^2} g, \qquad
        g \leftarrow g + \alpha \frac{\lVert g \rVert}{\lVert g_v \rVert} g_v

    Liu, Mai, Chen, Hsieh and You, "Towards Efficient and Scalable Sharpness-Aware Minimization", CVPR 2022,
    algorithm 1.

    Memory: 4 sets of weights at the peak of a step, gradients among them; SGD alone takes 1.

    Args:
        rho: Length of the ascent. Default 0.05 (SAM's).
        period: k: a second pass in the steps 0, k, 2k, ... Default 5 (paper).
        alpha: Weight of the direction used again. Default 0.7 (paper).
        projection: ``"global"`` over all parameters (paper), or ``"tensor"``: each by itself (pytorch_optimizer).

    Example:
        >>> layer = torch.nn.Linear(2, 1)
        >>> LookSAM(torch.optim.SGD(layer.parameters(), lr=0.1), period=10).needs_perturbation()
        True
    """

    def __init__(
        self,
        base: Base,
        rho: float = 0.05,
        *,
        period: int = 5,
        alpha: float = 0.7,
        projection: Projection = "global",
        **options: Unpack[AscentKeywords],
    ) -> None:
        super().__init__(base, _LookSAM(rho, period, alpha, projection), **options)


def reject(plain: list[Tensor], perturbed: list[Tensor]) -> None:
    """Turn plain gradients into the part of the perturbed ones that is orthogonal to them."""
    # The plain gradients may have another scale (before unscaling or clipping): only their direction counts. With g as
    # long as g_s and d = g - g_s, the cosine is c = 1 - (||d|| / ||g_s||)^2 / 2, and the part is (1 - c) g_s - c d.
    if not plain:
        return
    norm = joint_norm(perturbed)
    scale_all(plain, norm / joint_norm(plain))
    torch._foreach_sub_(shards(plain), shards(perturbed))
    short = (joint_norm(plain) / norm).square() / 2
    scale_all(plain, short - 1)
    add_scaled(plain, perturbed, short)
