"""Friendly sharpness-aware minimization (F-SAM).

Deviations from the official code (nblt/F-SAM):

1. The average is of unscaled gradients and moves once per step, also with several micro-batches (by their mean) and
   under a local ascent (by the mean over ranks).
2. The average is part of the checkpoint.
"""

from __future__ import annotations

from typing import Any, ClassVar, Unpack, final

import torch
from torch import Tensor

from lowland.core.errors import require
from lowland.optim.moves import add_scaled, joint_norm, shards
from lowland.optim.options import AscentKeywords, Base
from lowland.optim.parts import Held, Method
from lowland.optim.wrapper import Wrapper


class _FSAM(Method):
    name: ClassVar[str] = "FSAM"
    keeps_first: ClassVar[bool] = True
    own: ClassVar[tuple[str, ...]] = ("gradient",)

    def __init__(self, rho: float, sigma: float, decay: float) -> None:
        require(0 <= sigma < float("inf"), "sigma", "must be finite and not negative", sigma, "0 is SAM")
        require(0 <= decay < 1, "decay", "must lie in [0, 1)", decay)
        self.sigma, self.decay = sigma, decay
        super().__init__(rho)

    def numbers(self) -> dict[str, int | float | bool]:
        return {"gradients": 0}

    def check_scaler(self, known: bool) -> None:
        line = "write FSAM(base, ..., scaler=scaler), or optimizer.use_scaler(scaler) where it is made later"
        require(known, "scaler", "must be given: the average is of unscaled gradients", None, line)

    def direction(self, held: Held, parameters: list[Tensor], gradients: list[Tensor]) -> tuple[list[Tensor], Tensor]:
        if held.numbers["gradients"] and self.sigma:
            averages = dict(zip(*held.own("gradient"), strict=True))
            gradients = list(torch._foreach_mul(gradients, 1.0))
            known = [(g, averages[p]) for g, p in zip(gradients, parameters, strict=True) if p in averages]
            add_scaled([g for g, _ in known], [m for _, m in known], loss_scale(held) * -self.sigma)
        return gradients, joint_norm(gradients)

    def commit(self, held: Held) -> None:
        kept = held.scratch.kept
        if not kept:
            return
        averages = dict(zip(*held.own("gradient"), strict=True))
        share = 1 - self.decay if held.numbers["gradients"] else 1.0
        torch._foreach_mul_(shards(averages.values()), 1 - share)
        reached, scale = [p for p in averages if p in kept], loss_scale(held) * held.scratch.perturbations
        add_scaled([averages[p] for p in reached], [kept[p] for p in reached], share / scale)
        held.numbers["gradients"] += 1


def loss_scale(held: Held) -> Tensor:
    """Return what the gradients of this step's passes are scaled by; the host does not read it."""
    scaler, parameter = held.scratch.scaler, next(held.parameters())
    one = torch.ones((), dtype=torch.promote_types(parameter.dtype, torch.float32), device=parameter.device)
    return one if scaler is None else scaler.scale(one).to(one)


@final
class FSAM(Wrapper):
    r"""SAM along the part of the gradient that is the batch's own: what all batches share is taken out of the ascent.

    .. math:: \epsilon = \rho\, d / \lVert d \rVert_2, \qquad d = g - \sigma m, \qquad
        m \leftarrow \lambda m + (1 - \lambda) g

    where m is used before it moves, and begins as the first g; the first ascent is SAM's.

    Li, Zhou, He, Cheng and Huang, "Friendly Sharpness-Aware Minimization", CVPR 2024 (arXiv 2403.12350), and its code.

    Memory: 4 sets of weights at the peak of a step, gradients among them; SGD alone takes 1.

    Args:
        rho: Length of the ascent. Default 0.2 (official run script, CIFAR-100).
        sigma: How much of the average is taken out. Default 1 (paper); 0 is SAM.
        decay: lambda. Default 0.6 (official run script, CIFAR-100; 0.9 in its class, 0.95 in its program).
        scaler: The `GradScaler` of a run in float16; None: ``use_scaler`` says it later, as trainers' integrations and
            ``fit`` do, or there is none.

    Raises:
        InputError: At the first step of a scaler that was not given; nothing was changed.

    Example:
        >>> layer = torch.nn.Linear(2, 1)
        >>> FSAM(torch.optim.SGD(layer.parameters(), lr=0.1)).sigma
        1.0
    """

    def __init__(
        self,
        base: Base,
        rho: float = 0.2,
        *,
        sigma: float = 1.0,
        decay: float = 0.6,
        scaler: Any = None,
        **options: Unpack[AscentKeywords],
    ) -> None:
        super().__init__(base, _FSAM(rho, sigma, decay), **options)
        self.use_scaler(scaler)
