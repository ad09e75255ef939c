"""Weighted sharpness-aware minimization (WSAM).

Deviations from the official code (intelligent-machine-learning/atorch):

1. Both gradients are averaged over ranks, also after a local ascent; the code takes the move of one rank or of all,
   depending on how its step is called.
2. A scaler and clipping meet the perturbed gradient, and what they multiply it by goes for the plain one too; the code
   leaves its kept gradients scaled.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Unpack, final

import torch

from lowland.core.errors import InputError, require
from lowland.optim.moves import interpolate, scale_all, shards
from lowland.optim.options import AscentKeywords, Base
from lowland.optim.parts import Held, Method, rate_of
from lowland.optim.passes import both_gradients, own_gradients
from lowland.optim.wrapper import Wrapper


class _WSAM(Method):
    name: ClassVar[str] = "WSAM"
    keeps_first: ClassVar[bool] = True
    measures: ClassVar[bool] = True

    def __init__(self, rho: float, gamma: float, decoupled: bool) -> None:
        require(0 <= gamma < 1, "gamma", "must lie in [0, 1)", gamma, "0.5 with decoupled=False is SAM")
        self.gamma, self.decoupled = gamma, decoupled
        super().__init__(rho)

    @property
    def steps_aside(self) -> bool:  # the sharpness term is a step of its own
        return self.decoupled

    def check_group(self, group: Mapping[str, Any]) -> None:
        super().check_group(group)
        if self.decoupled and group.get("lr", 0.0) is None:
            raise InputError("base", "must have a learning rate for the sharpness term", None, "pass decoupled=False")

    def prepare(self, held: Held) -> None:
        kept, alpha = held.scratch.kept, self.gamma / (1 - self.gamma)
        if not kept:
            return
        if self.decoupled:  # or the difference would be written into what a user keeps
            own_gradients(held, held.parameters())
        plain, perturbed = both_gradients(held, kept)
        scale_all(plain, held.rescaling())
        if self.decoupled:  # the base gets the plain gradient, what is kept is their difference
            torch._foreach_sub_(shards(perturbed), shards(plain))
        else:
            interpolate(plain, perturbed, alpha)
        for parameter, gradient in kept.items():
            parameter.grad, kept[parameter] = gradient, parameter.grad

    def commit(self, held: Held) -> None:
        if not self.decoupled:
            return
        kept, alpha = held.scratch.kept, self.gamma / (1 - self.gamma)
        for group in held.groups():
            step = alpha * rate_of(group, 0.0) * (1.0 if group.get("maximize") else -1.0)
            moved = [parameter for parameter in group["params"] if parameter in kept]
            if moved and step:  # 0 times an infinite gradient would be NaN
                torch._foreach_add_(shards(moved), shards(kept[p] for p in moved), alpha=step)


@final
class WSAM(Wrapper):
    r"""SAM whose sharpness has a weight, and may be a step of its own beside the base's.

    .. math:: w \leftarrow \text{base}(w, g) - \eta\, \frac{\gamma}{1 - \gamma} (g_p - g), \qquad
        g_p = \nabla L(w + \epsilon)

    with epsilon as in SAM; coupled, the base gets the gradient (1 - a) g + a g_p with a = gamma / (1 - gamma).

    Yue, Jiang, Ye, Gao, Liu and Zhang, "Sharpness-Aware Minimization Revisited: Weighted Sharpness as a Regularization
    Term", KDD 2023 (arXiv 2305.15817), and its code.

    Memory: 3 sets of weights at the peak of a step, gradients among them; SGD alone takes 1.

    Args:
        rho: Length of the ascent. Default 0.05 (official class; 0.2 in its CIFAR-10 script).
        gamma: Weight of the perturbed loss against the plain one. Default 0.9 (official class; 0.8 to 0.95 are useful);
            0.5 coupled is SAM.
        decoupled: Whether the sharpness term is a step of its own, without the base's momentum and preconditioner.
            Default True (paper).

    Example:
        >>> layer = torch.nn.Linear(2, 1)
        >>> WSAM(torch.optim.SGD(layer.parameters(), lr=0.1)).gamma
        0.9
    """

    def __init__(
        self,
        base: Base,
        rho: float = 0.05,
        *,
        gamma: float = 0.9,
        decoupled: bool = True,
        **options: Unpack[AscentKeywords],
    ) -> None:
        super().__init__(base, _WSAM(rho, gamma, decoupled), **options)
