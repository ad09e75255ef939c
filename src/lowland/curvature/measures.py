"""Several sharpness measures side by side, with what they must be read with, and no single verdict.

No measure ranks networks by how well they generalize in general (Andriushchenko et al. 2023); cross-entropy curvature
vanishes as a net memorizes. So a table holds several, plain and adaptive, on outputs as they are and normalized, with
train loss, accuracy and weight norm; `lowland.results.at_matched_loss` compares runs where their losses are equal.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from lowland.core.errors import InputError
from lowland.core.params import ParameterSpace
from lowland.core.provenance import provenance
from lowland.core.risk import EmpiricalRisk
from lowland.core.schema import new_curvature
from lowland.curvature.average_case import average_case_sharpness
from lowland.curvature.protocol import Metric, logits_normalized, protocol_risk
from lowland.curvature.sharpness import Sharpness, sam_sharpness
from lowland.curvature.worst_case import Norm, WorstCase, worst_case_sharpness

if TYPE_CHECKING:
    import xarray as xr


@dataclass(frozen=True, slots=True)
class Measure:
    """One row of the table.

    Args:
        family: ``"sam"``, ``"m-sam"``, ``"average"`` or ``"worst"``.
        rho: Radius.
        norm: ``"l2"`` or ``"linf"``.
        kind: The metric, see `lowland.curvature.protocol.Metric`.
        normalized: Whether outputs are centered and divided by their length.
    """

    family: str
    rho: float
    norm: Norm = "l2"
    kind: Metric = "plain"
    normalized: bool = False

    @property
    def name(self) -> str:
        """For instance ``"worst l2 adaptive rho=0.5, normalized"``."""
        return f"{self.family} {self.norm} {self.kind} rho={self.rho:g}" + (", normalized" if self.normalized else "")


MEASURES: Final[tuple[Measure, ...]] = (
    Measure("sam", 0.05),
    Measure("m-sam", 0.05),
    Measure("average", 0.1, kind="adaptive"),
    Measure("average", 0.1, kind="adaptive", normalized=True),
    Measure("worst", 0.25),
    Measure("worst", 0.5, kind="adaptive"),
    Measure("worst", 0.5, kind="adaptive", normalized=True),
    Measure("worst", 0.002, norm="linf", kind="adaptive"),
    Measure("worst", 0.002, norm="linf", kind="adaptive", normalized=True),
    Measure("worst", 1e-3, norm="linf", kind="keskar"),
)
"""The default table: radii from the middle of the grids of Andriushchenko et al. 2023 (table of section 3), the box of
Keskar et al. 2017, SAM's own radius."""


def sharpness_table(
    risk: EmpiricalRisk,
    *,
    measures: Sequence[Measure] = MEASURES,
    samples: int | None = 1024,
    batch_size: int | None = 128,
    steps: int = 20,
    draws: int = 20,
    seed: int = 0,
) -> xr.Dataset:
    """Measure several kinds of sharpness by the standard protocol.

    Args:
        risk: A risk on training data.
        measures: What to measure. Default `MEASURES`.
        samples: Samples of the fixed subset, at most those there are; None takes all. Default 1024.
        batch_size: Samples per ball of the worst case and of m-sharpness. Default 128.
        steps: Steps of auto-PGD. Default 20.
        draws: Perturbations of the average case. Default 20.
        seed: Seed of subset and perturbations.

    Returns:
        A curvature Dataset with the dim ``measure``: ``sharpness``, ``sharpness_se``, ``rho``, ``winner``; and the
        scalars ``train_loss, train_accuracy, weight_norm``.
    """
    chosen = protocol_risk(risk, samples=samples, batch_size=batch_size, seed=seed)
    rows = [_measure(chosen, measure, steps, draws, seed) for measure in measures]
    beside, attrs = read_with(chosen)
    variables: dict[str, Any] = {
        "measure": ("measure", [measure.name for measure in measures]),
        "sharpness": ("measure", [row.value for row in rows]),
        "sharpness_se": ("measure", [row.standard_error for row in rows]),
        "rho": ("measure", [measure.rho for measure in measures]),
        "winner": ("measure", [row.winner if isinstance(row, WorstCase) else "" for row in rows]),
        **beside,
    }
    attrs |= {"batch_size": batch_size, "apgd_steps": steps, "draws": draws, "mode": "evaluation, no augmentation"}
    attrs["seeds"] = {"subsample": seed, "probe": seed}
    return new_curvature([], [], variables=variables, attrs=attrs)


def read_with(risk: EmpiricalRisk) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what curvature must be read with as variables, and the attributes of a result on the same data."""
    measured = risk.evaluate()
    with risk.prepared():
        weight_norm = ParameterSpace(risk.model).norm()
    accuracy = measured["accuracy"].value if "accuracy" in measured else math.nan
    found = {"train_loss": measured["loss"].value, "train_accuracy": accuracy, "weight_norm": weight_norm}
    attrs = {"risk": risk.describe(), "batch_norm": risk.batch_norm, "samples": measured["loss"].samples}
    return {name: ((), value) for name, value in found.items()}, {**provenance(), **attrs}


def _measure(risk: EmpiricalRisk, measure: Measure, steps: int, draws: int, seed: int) -> Sharpness | WorstCase:
    where = logits_normalized(risk) if measure.normalized else risk
    ball: dict[str, Any] = {"rho": measure.rho, "norm": measure.norm, "kind": measure.kind}
    if measure.family in ("sam", "m-sam"):
        if measure.norm != "l2" or measure.kind == "keskar":
            raise InputError("measures", "must take SAM's sharpness in l2, plain or adaptive", measure.name)
        adaptive = measure.kind == "adaptive"
        return sam_sharpness(where, rho=measure.rho, adaptive=adaptive, per_batch=measure.family == "m-sam")
    if measure.family == "average":
        return average_case_sharpness(where, **ball, draws=draws, seed=seed)
    if measure.family == "worst":
        return worst_case_sharpness(where, **ball, steps=steps)
    raise InputError("measures", 'must be of the family "sam", "m-sam", "average" or "worst"', measure.family)
