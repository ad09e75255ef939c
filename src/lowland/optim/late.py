"""SAM for the last share of a run, together with the decay of the learning rate that belongs to it.

Deviations from the published programs (zzp1012/SAM-in-Late-Phase, temperon 0.1.1):

1. One optimizer for both phases: momentum goes on, and the decay is its own, so that no scheduler is left behind on
   another one.
"""

from __future__ import annotations

from typing import ClassVar, Unpack, final

from lowland.core.errors import require
from lowland.optim.options import AscentKeywords, Base, check_count
from lowland.optim.parts import Held, Method, set_rates
from lowland.optim.rates import Decay, decay_of
from lowland.optim.wrapper import Wrapper


class _LateSAM(Method):
    name: ClassVar[str] = "LateSAM"
    owns_rate: ClassVar[bool] = True

    def __init__(self, rho: float, total: int | None, share: float, decay: Decay, floor: float) -> None:
        require(0 < share <= 1, "share", "must lie in (0, 1]", share)
        self.total: int | None = None
        self.share, self.decay, self.floor = share, decay, floor
        decay_of(decay, floor)
        if total is not None:
            self.plan(total)
        super().__init__(rho)

    def plan(self, total: int) -> None:
        """Take over the length of the run where it was not given; called before the first step."""
        check_count("total", total, 1)
        self.total = self.total or total

    @property
    def first(self) -> int:
        """The first step of the tail, counted from 0."""
        rule = "must be given: the steps of the whole run"
        require(self.total, "total", rule, None, "pass total=epochs * len(loader)")
        return round((1 - self.share) * (self.total or 1))

    def wants(self, held: Held) -> bool:
        return held.steps >= self.first

    def prepare(self, held: Held) -> None:
        first, total = self.first, self.total or 1
        if held.steps >= first:
            done = min(1.0, (held.steps - first) / max(1, total - first))
            set_rates(held, decay_of(self.decay, self.floor)(done))


@final
class LateSAM(Wrapper):
    r"""Plain steps at the schedule's rate first; then SAM while the rate decays, in the last share f of T steps.

    .. math:: \eta_t = \eta\, D\!\left(\frac{t - (1 - f) T}{f T}\right), \quad \rho_t = \rho \qquad
        \text{from step } (1 - f) T \text{ on}

    Zhou, Chen, Chen, Xie and Yan, "Sharpness-Aware Minimization Efficiently Selects Flatter Minima Late in Training",
    ICLR 2025 (arXiv 2410.10373); that the share should be the decay's: temperon (arXiv 2609.17575).

    Before the tail the rate is whatever schedulers make of it (warm-up, constant); in the tail it is the optimizer's,
    and another scheduler that changes it raises. Steps after T go on at the rate where the decay ends.

    Memory: 2 sets of weights at the peak of a step, gradients among them; SGD alone takes 1.

    Args:
        rho: Length of the ascent. Default 0.05 (temperon; SAM's).
        total: T: steps of the whole run; None: `lowland.training.fit` says it.
        share: f: the last share of the run that is SAM's, and the decay's. Default 0.3 (temperon).
        decay: D: ``"linear"``, ``"cosine"``, ``"1-sqrt"``, or a function of the share of the tail done, from 1 to 0.
            Default ``"linear"`` (ours).
        floor: Where the decay ends, as a multiple. Default 0.

    Example:
        >>> import torch
        >>> layer = torch.nn.Linear(2, 1)
        >>> LateSAM(torch.optim.SGD(layer.parameters(), lr=0.1), total=100).first
        70
    """

    def __init__(
        self,
        base: Base,
        rho: float = 0.05,
        *,
        total: int | None = None,
        share: float = 0.3,
        decay: Decay = "linear",
        floor: float = 0.0,
        **options: Unpack[AscentKeywords],
    ) -> None:
        super().__init__(base, _LateSAM(rho, total, share, decay, floor), **options)
