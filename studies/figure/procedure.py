"""A part of a surface again by the procedure of Li et al.'s tool: point by point, in lines that use none of ours."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from lowland import EmpiricalRisk
from lowland.core.seeds import normal
from lowland.landscape import Tolerance
from studies.figure.measure import allowed_error

__all__ = ["by_procedure", "procedure_line"]

_SIDE: Final = 11
"""Points a side, taken evenly from those of the surface."""
_BATCH: Final = 100


def by_procedure(risk: EmpiricalRisk, surface: xr.Dataset, seed: int, tolerance: Tolerance) -> dict[str, Any]:
    """Return how far the surface is from the procedure, at points that were measured and at those in between."""
    step = max(1, (surface.sizes["x"] - 1) // (_SIDE - 1))
    part = surface.isel(x=slice(None, None, step), y=slice(None, None, step))
    cut = [(torch.split(batch.input, _BATCH), torch.split(batch.target, _BATCH)) for batch in risk.batches()]
    batches = [pair for both in cut for pair in zip(*both, strict=True)]
    true = _losses(risk.model, batches, seed, part["x"].values, part["y"].values)
    values, center = surface["loss"].values, float(surface["loss"].sel(x=0.0, y=0.0))
    allowed = allowed_error(values, center, tolerance)[::step, ::step]
    measured, gap = part["status"].values == 1, np.abs(part["loss"].values - true)
    ratios = (gap / allowed)[~measured]
    return {
        "points": int(true.size),
        "measured": int(measured.sum()),
        "largest_difference": float((gap / true)[measured].max(initial=0.0)),
        "inside": int((ratios <= 1).sum()),
        "worst": float(ratios.max(initial=0.0)),
        "losses": true.tolist(),
    }


@torch.no_grad()
def _losses(
    model: nn.Module, batches: list[tuple[Tensor, Tensor]], seed: int, xs: NDArray[Any], ys: NDArray[Any]
) -> NDArray[np.float64]:
    """Return the losses at w + x d + y e with filters scaled and tensors of one axis left out, in evaluation mode."""
    model.eval()
    named = list(model.named_parameters())
    start = [p.clone() for _, p in named]
    first, second = ([_filters(normal(p, seed, "direction", axis, n), p) for n, p in named] for axis in (0, 1))
    found = np.empty((len(xs), len(ys)))
    try:
        for i, a in enumerate(xs):
            for j, b in enumerate(ys):
                for (_, p), w, d, e in zip(named, start, first, second, strict=True):
                    p.copy_(w + float(a) * d + float(b) * e)
                total = sum(float(F.cross_entropy(model(x), y)) * len(y) for x, y in batches)
                found[i, j] = total / sum(len(y) for _, y in batches)
    finally:
        for (_, p), w in zip(named, start, strict=True):
            p.copy_(w)
    return found


def _filters(direction: Tensor, weights: Tensor) -> Tensor:
    if weights.dim() <= 1:
        return torch.zeros_like(weights)
    return torch.stack([d * (w.norm() / (d.norm() + 1e-10)) for d, w in zip(direction, weights, strict=True)])


def procedure_line(found: dict[str, Any]) -> str:
    """Return the cells of a row of the page."""
    between = found["points"] - found["measured"]
    return (
        f"{found['points']} | {found['measured']}: {found['largest_difference']:.0e} | {found['inside']} of {between} "
        f"inside, worst {found['worst']:.2f} of the promise"
    )
