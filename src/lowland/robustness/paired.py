"""What every part of a card shares: a risk measured sample by sample against its plain weights, and its parabola."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from torch import Tensor

from lowland.core.errors import require
from lowland.core.moments import Estimate, Tally, estimates
from lowland.core.params import global_norm
from lowland.core.risk import EmpiricalRisk
from lowland.curvature import Hessian
from lowland.curvature.perturbed_risk import PerturbedRisk, perturbed_risk
from lowland.curvature.trace import images

QUANTILES: Final = (0.05, 0.25, 0.5, 0.75, 0.95)
"""Of the change of the loss over random directions."""

_NONE: Final = (math.nan,) * len(QUANTILES)
_CHUNK: Final = 4
ALL: Final = "all"
SUBSET: Final = "subset"
"""Names of the two sets of samples: those of the risk, and the subset that predictions are made on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What one change of the weights or inputs did, beside what curvature predicts; NaN where there is no number.

    Args:
        part: Part of the card.
        name: What was done.
        size: How much of it: bits, radius, step, share of the way, or size on inputs.
        distance: Length of the change of the weights; the mean over draws.
        loss: Loss after it, on all samples.
        loss_change: Minus that of the plain weights.
        loss_change_se: Its standard error over samples, paired; of a mean over draws an upper bound.
        accuracy: Accuracy after it.
        accuracy_change: Minus that of the plain weights.
        accuracy_change_se: Its standard error over samples, paired.
        draws: Random directions that this is the mean of; 1 where nothing is drawn.
        draw_se: Standard error of the change of the loss over draws.
        quantiles: Of the change of the loss over draws, at `QUANTILES`.
        quantile_se: Their standard errors, by bootstrap over draws.
        first: Predicted, ``g.d``.
        second: Predicted, ``d'Hd / 2``.
        trace: Predicted for noise of that size: filter-weighted trace times ``rho^2 / 2``.
        compared: What was measured on the samples of the prediction.
        other_loss: Loss on the second data set (forgetting); mean of the losses at both ends (merging).
    """

    part: str
    name: str
    size: float
    distance: float = math.nan
    loss: float = math.nan
    loss_change: float = math.nan
    loss_change_se: float = math.nan
    accuracy: float = math.nan
    accuracy_change: float = math.nan
    accuracy_change_se: float = math.nan
    draws: int = 1
    draw_se: float = math.nan
    quantiles: tuple[float, ...] = _NONE
    quantile_se: tuple[float, ...] = _NONE
    first: float = math.nan
    second: float = math.nan
    trace: float = math.nan
    compared: float = math.nan
    other_loss: float = math.nan

    @property
    def predicted(self) -> float:
        """The parabola at the changed weights."""
        return self.first + self.second

    @property
    def ratio(self) -> float:
        """Measured over predicted, on the same samples; 1 while the quadratic picture holds."""
        return self.compared / self.predicted if self.predicted else math.nan


class PairedRisk:
    """A risk around its plain weights, on all samples and on the subset; made by `paired_risk`."""

    def __init__(self, here: PerturbedRisk, risks: Mapping[str, EmpiricalRisk], trace: float) -> None:
        self.here, self.risks, self.space, self.base = here, dict(risks), here.space, here.base
        self.subset, self._trace = self.risks.get(SUBSET, here.risk), trace
        moved = [p for p, rule in zip(self.base, self.space.rules, strict=True) if rule.kind != "fixed"]
        self.norm = float(global_norm([p.double() for p in moved]))
        require(self.norm > 0, "model", "must have weights that are not all 0, which radii are measured by", self.norm)
        with torch.no_grad():
            self._move(self.base)
            measured = {k: [dict(risk.measure(batch)) for batch in risk.batches()] for k, risk in risks.items()}
        self._center = {
            k: [{name: values.detach() for name, (values, _) in batch.items()} for batch in batches]
            for k, batches in measured.items()
        }
        self.plain = {k: _estimates(batches) for k, batches in measured.items()}

    def _move(self, weights: Sequence[Tensor]) -> None:
        self.space.write(weights)
        self.here.risk.recalibrate()

    @torch.no_grad()
    def changes(self, weights: Sequence[Tensor]) -> dict[str, dict[str, Estimate]]:
        """Measure other weights: every metric, and as ``NAME_change`` its difference to the plain weights."""
        self._move(weights)
        found = {}
        for split, risk in self.risks.items():
            tally = Tally()
            for batch, center in zip(risk.batches(), self._center[split], strict=True):
                measured = dict(risk.measure(batch))
                differences = {f"{n}_change": (v - center[n], w) for n, (v, w) in measured.items() if n in center}
                tally.add(measured | differences)
            found[split] = estimates([tally])[0]
        return found

    def outcome(self, weights: Sequence[Tensor], **known: Any) -> Outcome:
        """Measure other weights as a row; what is predicted comes from `with_predictions`."""
        changes = self.changes(weights)
        step = [w.double() - b.double() for w, b in zip(weights, self.base, strict=True)]
        numbers = _numbers(changes[ALL], "loss") | _numbers(changes[ALL], "accuracy")
        compared = changes.get(SUBSET, changes[ALL])["loss_change"].value
        return Outcome(distance=float(global_norm(step)), compared=compared, **numbers, **known)

    def like_noise(self, distance: float) -> float:
        """Return what filter-normalized noise of a length is predicted to do: trace times rho^2 / 2."""
        return self._trace * (distance / self.norm) ** 2 / 2

    def parabolas(self, steps: Iterable[Sequence[Tensor]]) -> list[tuple[float, float]]:
        """Return ``g.d`` and ``d'Hd / 2`` of steps from the plain weights, one product each."""
        self._move(self.base)
        slope = self.subset.gradient()
        with Hessian(self.subset, check=False) as hessian:
            uphill = hessian.join(slope).double()
            vectors = (self.space.flatten(step).to(hessian.dtype) for step in steps)
            found = images(hessian, vectors, _CHUNK)
            return [(float(uphill @ d.double()), float(d.double() @ h.double()) / 2) for d, h in found]

    def with_predictions(self, rows: Sequence[Outcome], weights: Iterable[Sequence[Tensor]]) -> list[Outcome]:
        """Put beside each row what curvature predicts at its weights."""
        steps = ([w - b for w, b in zip(each, self.base, strict=True)] for each in weights)
        return [
            replace(row, first=first, second=second, trace=self.like_noise(row.distance))
            for row, (first, second) in zip(rows, self.parabolas(steps), strict=True)
        ]


@contextmanager
def paired_risk(risks: Mapping[str, EmpiricalRisk], trace: float = math.nan) -> Generator[PairedRisk]:
    """Prepare a risk to be measured against its plain weights; everything is restored bit for bit at the end."""
    with perturbed_risk(risks[ALL]) as here:
        yield PairedRisk(here, risks, trace)


def _estimates(measured: Iterable[Mapping[str, tuple[Tensor, Any]]]) -> dict[str, Estimate]:
    tally = Tally()
    for batch in measured:
        tally.add(batch)
    return estimates([tally])[0]


def _numbers(found: Mapping[str, Estimate], name: str) -> dict[str, Any]:
    if name not in found:
        return {}
    change = found[f"{name}_change"]
    return {name: found[name].value, f"{name}_change": change.value, f"{name}_change_se": change.standard_error}
