"""The curvature that pictures show at a spacing, and the part of it that kinks add to the Hessian's.

Along a line with the loss f a picture shows ``(f(h) - 2 f(0) + f(-h)) / h^2``, which is ``d^T H d`` but for h^2 where f
is smooth. A jump of the slope by J at a distance t < h adds ``J (h - |t|) / h^2``, which no Hessian product sees: near
a minimum of a ReLU network, where units rest at their kinks, it grows as the spacing falls.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lowland.core.errors import InputError, check_positive
from lowland.core.facts import ShowsFacts, with_error
from lowland.core.risk import EmpiricalRisk
from lowland.curvature.eigenvalues import as_operator
from lowland.curvature.hessian import Hessian
from lowland.curvature.perturbed_risk import perturbed_risk
from lowland.curvature.trace import ProbeEstimate, estimate, filter_direction, filter_weighted_trace


@dataclass(repr=False, frozen=True, slots=True)
class PictureCurvature(ShowsFacts):
    """Curvature at the center along filter-normalized directions, as pictures show it and as the Hessian has it.

    Args:
        value: Second differences at the spacing, kinks included.
        trace: ``d^T H d`` along the same directions: the filter-weighted trace, without kinks.
        kinks: Their difference, direction by direction; where nothing has kinks, what a parabola misses over the
            spacing.
        spacing: Distance of the points to the center.
        causes: Functions with kinks that were recognized, by autograd's names; and recalibrated batch norm, whose
            statistics move along a line and not in the Hessian.
    """

    value: ProbeEstimate
    trace: ProbeEstimate
    kinks: ProbeEstimate
    spacing: float
    causes: tuple[str, ...]

    def _facts(self) -> dict[str, str]:
        parts = {"": self.value, "Hessian": self.trace, "kinks": self.kinks}
        shown = {name: with_error(part.value, part.standard_error) for name, part in parts.items()}
        return shown | {"spacing": f"{self.spacing:g}", "n": str(self.value.probes), "causes:": ", ".join(self.causes)}


def picture_curvature(
    source: EmpiricalRisk | Hessian,
    *,
    spacing: float = 0.04,
    directions: int = 48,
    chunk: int = 8,
    seed: int = 0,
) -> PictureCurvature:
    """Return the mean curvature of pictures at the center, and how much of it are kinks.

    Args:
        source: A risk, or a Hessian made from one.
        spacing: Distance of the points to the center, in units of the axes; the number depends on it. Default 0.04:
            that of 51 points from -1 to 1.
        directions: Random directions; a product and two evaluations each. Default 48.
        chunk: Vectors multiplied at once. Default 8.
        seed: Seed of the directions, the same as those of `filter_weighted_trace`.

    Returns:
        Both curvatures and their paired difference, each with its standard error.

    Example:
        >>> import torch
        >>> layer = torch.nn.Linear(1, 1, bias=False).double()
        >>> _ = torch.nn.init.constant_(layer.weight, 2.0)
        >>> kink = lambda output, target: (output - 2).relu()  # the slope jumps by 1 at the center
        >>> risk = EmpiricalRisk(layer, kink, [(torch.ones(1, 1).double(), torch.zeros(1, 1).double())])
        >>> found = picture_curvature(risk, spacing=0.1, directions=2)
        >>> round(found.value.value, 6), found.trace.value, found.causes  # ||w|| / h
        (20.0, 0.0, ('Relu',))
    """
    check_positive(spacing=spacing)
    operator = as_operator(source)
    if not isinstance(operator, Hessian):
        raise InputError("source", "must be a risk or its Hessian", type(operator).__name__)
    trace = filter_weighted_trace(operator, directions=directions, chunk=chunk, seed=seed)
    with perturbed_risk(operator.risk, modules=operator.modules) as here:
        center, differences = here.loss(), []
        for index in range(directions):
            step = [spacing * part for part in filter_direction(here.space, here.base, seed, index)]
            rises = here.loss(step) - 2 * center + here.loss([-part for part in step])
            differences.append(rises / spacing**2)
    values, method = np.asarray(differences), f"second differences at spacing {spacing:g}"
    causes = operator.kinks + (("recalibrated batch norm",) if operator.risk.batch_norm == "recalibrated" else ())
    return PictureCurvature(
        estimate(values, 0, method, seed),
        trace,
        estimate(values - trace.samples, 0, f"{method}, minus the Hessian's", seed),
        spacing,
        causes,
    )
