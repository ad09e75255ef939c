"""Sharpness-aware minimization (SAM)."""

from __future__ import annotations

from typing import ClassVar, Unpack, final

from lowland.optim.options import AscentKeywords, Base
from lowland.optim.parts import Method
from lowland.optim.wrapper import Wrapper


class _SAM(Method):
    name: ClassVar[str] = "SAM"


@final
class SAM(Wrapper):
    r"""Step with the gradient found at the worst point nearby.

    .. math:: w \leftarrow \text{base}(w, \nabla L(w + \epsilon)), \qquad \epsilon = \rho\, g / \lVert g \rVert_2,
        \quad g = \nabla L(w)

    Foret, Kleiner, Mobahi and Neyshabur, "Sharpness-Aware Minimization for Efficiently Improving Generalization",
    ICLR 2021, equation 2 with p = 2 and algorithm 1.

    Memory: 2 sets of weights at the peak of a step, gradients among them; SGD alone takes 1.

    Args:
        rho: Length of the ascent; also per parameter group. Default 0.05, the paper's section 3.

    Example:
        >>> import torch
        >>> layer = torch.nn.Linear(2, 1)
        >>> optimizer = SAM(torch.optim.SGD(layer.parameters(), lr=0.1), rho=0.05)
        >>> data = torch.ones(4, 2)
        >>> layer(data).square().mean().backward()
        >>> with optimizer.perturb():
        ...     layer(data).square().mean().backward()
        >>> optimizer.step()
    """

    def __init__(self, base: Base, rho: float = 0.05, **options: Unpack[AscentKeywords]) -> None:
        super().__init__(base, _SAM(rho), **options)
