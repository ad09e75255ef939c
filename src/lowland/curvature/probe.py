"""The convexity map: both ends of the spectrum at every point of a surface, each run started from its neighbor's.

Li et al. 2018, section 6, draw ``|lambda_min / lambda_max|`` over the plane. Here every value goes with its residual,
and whether there is negative curvature has three answers. Hand a `Convexity` to ``landscape.evaluate`` as a probe.

A run that starts from a neighbor's eigenvectors needs half the products or fewer, but may follow an eigenvalue that is
no longer the outermost. Four guards: the start holds two eigenvectors from each end, and a random part; the coarsest
points start cold, so that nothing is handed on from far away; and a share of all points, chosen by the bits of the
weights, is measured cold as well. Where the two disagree beyond their residuals the outer value is kept and the point
is marked.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Final

import numpy as np
import torch
from torch import Tensor

from lowland.core.errors import InputError, NotFinite, require
from lowland.core.risk import EmpiricalRisk
from lowland.core.schema import STATUS_MEASURED
from lowland.curvature.eigenvalues import SpectrumEnds, extreme_eigenvalues
from lowland.curvature.hessian import Hessian

if TYPE_CHECKING:
    import xarray as xr

_NEGATIVE: Final = {"negative": 1.0, "undecided": 0.0, "none found": -1.0}
_ENDS: Final[dict[str, Callable[[SpectrumEnds], float]]] = {
    "lambda_max": lambda ends: ends.lambda_max,
    "lambda_min": lambda ends: ends.lambda_min,
    "ratio": lambda ends: ends.ratio,
    "residual_max": lambda ends: ends.residual_max,
    "residual_min": lambda ends: ends.residual_min,
    "negative_curvature": lambda ends: _NEGATIVE[ends.negative],
    "lambda_min_bound": lambda ends: ends.bound_min,
}
_SLACK: Final = 1e-4
"""Two runs that differ by less than this share of the spectral scale agree: the accuracy asked of the lower end."""
_CARRIED: Final = 2
"""Eigenvectors from each end that are handed on: where the outermost two have changed places, the start holds both."""
_INNER: Final = 0.25
"""Length of the inner ones in the start: enough to be seen in time, little enough to cost hardly a product."""


@dataclasses.dataclass(kw_only=True, eq=False)
class Convexity:
    """Measures both ends of the Hessian's spectrum at a point; a probe for ``landscape.evaluate``.

    It gives ``lambda_max``, ``lambda_min``, ``ratio`` (``|lambda_min / lambda_max|``), ``residual_max``,
    ``residual_min``, ``negative_curvature`` (1: negative beyond its residual, 0: undecided, -1: none found),
    ``lambda_min_bound``, ``products`` (all of them), ``cold_check`` (1 where a cold run was made beside the warm one)
    and ``cold_disagreement`` (1 where the two disagreed). Where the gradient is not finite all of them are NaN.

    Args:
        tolerance: Residual of the upper end relative to the spectral scale. Default 1e-3.
        lower_tolerance: See `extreme_eigenvalues`. Default 0.05.
        max_products: Most products of one run, at least 6; what has not converged by then is marked. Default 80.
        noise: Random part of a warm start. Default 0.1, as stores of earlier versions have it; 1 takes fewer products
            and finds more planted ends (see `extreme_eigenvalues`), but on a trained transformer it stopped too soon
            at some points.
        cold_generations: Points that are at most this many steps from the first one in the grid's order of parents
            start cold. Default 1.
        check_share: Share of the other points that is measured cold as well. Default 0.05.
        modules: Only parameters of these submodules; None (default) takes all trainable ones.
        seed: Seed of the random vectors, the same at all points.

    Example:
        >>> Convexity(max_products=40).describe()["max_products"]
        40
    """

    tolerance: float = 1e-3
    lower_tolerance: float = 0.05
    max_products: int = 80
    noise: float = 0.1
    cold_generations: int = 1
    check_share: float = 0.05
    modules: Sequence[str] | None = None
    seed: int = 0

    names: ClassVar = (*_ENDS, "products", "cold_check", "cold_disagreement")
    warm_start: ClassVar = True

    def __post_init__(self) -> None:
        require(self.max_products >= 6, "max_products", "must be at least 6", self.max_products)
        require(0 <= self.check_share <= 1, "check_share", "must lie between 0 and 1", self.check_share)
        require(self.cold_generations >= 0, "cold_generations", "must not be negative", self.cold_generations)
        if not self.noise > 0:
            raise InputError("noise", "must be positive", self.noise, "without a random part a crossing is never seen")

    def describe(self) -> dict[str, Any]:
        """Return the settings as plain JSON values."""
        modules = None if self.modules is None else list(self.modules)
        return {"probe": "convexity", **dataclasses.asdict(self), "modules": modules}

    def __call__(self, risk: EmpiricalRisk, parent: Mapping[str, Any] | None, /) -> Mapping[str, Any]:
        """Return the numbers, and ``vectors`` and ``generation`` for children; see `lowland.landscape.Probe`."""
        generation = 0 if parent is None else int(parent["generation"]) + 1
        warm = parent is not None and generation > self.cold_generations
        operator = Hessian(risk, modules=self.modules, check=False)
        try:
            with operator:
                start = _unpacked(parent["vectors"], operator) if warm and parent is not None else None
                ends = self._run(operator, start)
                checked = warm and self._chosen(operator)
                cold = self._run(operator, None) if checked else ends
        except NotFinite:
            return dict.fromkeys(self.names, math.nan)
        outer, disagreed = _outer(ends, cold)
        return {
            **{name: _ENDS[name](outer) for name in _ENDS},
            "products": float(operator.products),
            "cold_check": float(checked),
            "cold_disagreement": float(disagreed),
            "vectors": _packed(outer.vectors),
            "generation": np.asarray(generation),
        }

    def _run(self, operator: Hessian, start: Tensor | None) -> SpectrumEnds:
        names = ("tolerance", "lower_tolerance", "max_products", "noise", "seed")
        given: dict[str, Any] = {name: getattr(self, name) for name in names}
        least = 6 if start is None else 4
        return extreme_eigenvalues(operator, start=start, min_products=least, pairs=_CARRIED, **given)

    def _chosen(self, operator: Hessian) -> bool:
        """Return whether this point is checked cold: drawn by the bits of its weights, the same on every engine."""
        heads = torch.cat([p.detach().reshape(-1)[:8].double() for p in operator.space.tensors])
        number = int.from_bytes(hashlib.sha256(heads.cpu().numpy().tobytes()).digest()[:8], "little")
        return number < self.check_share * 2**64


def _outer(first: SpectrumEnds, second: SpectrumEnds) -> tuple[SpectrumEnds, bool]:
    """Return the run that reaches further out, and whether they disagree beyond residuals and 1e-4 of the scale."""
    # A Ritz value never lies beyond the end of the spectrum, so that the outer one is always the better one.
    slack = _SLACK * max(first.scale, second.scale)
    low = first.lambda_min - second.lambda_min > first.residual_min + second.residual_min + slack
    high = second.lambda_max - first.lambda_max > first.residual_max + second.residual_max + slack
    return (second, True) if low or high else (first, False)


def _packed(vectors: Tensor) -> np.ndarray[Any, np.dtype[np.float16]]:
    """Return eigenvectors in half precision: the error is far below the random part of the start they are for."""
    columns = vectors / vectors.abs().amax(0)
    packed: np.ndarray[Any, np.dtype[np.float16]] = columns.to(torch.float16).cpu().numpy()
    return packed


def _unpacked(vectors: Any, operator: Hessian) -> Tensor:
    """Return the start: the outermost eigenvectors at length one, the next ones shorter."""
    columns = torch.as_tensor(np.asarray(vectors)).to(operator.device, operator.dtype)
    scaled: Tensor = columns / torch.linalg.vector_norm(columns, dim=0)
    scaled[:, 2:] *= _INNER
    return scaled


def convexity_summary(surface: xr.Dataset) -> dict[str, float | int | str]:
    """Return what a convexity map says, with what it cannot promise.

    Args:
        surface: A surface measured with a `Convexity` probe.

    Returns:
        Counts of points by their answer, products per point, cold checks and disagreements, and one sentence.

    Raises:
        InputError: If the surface holds no convexity map.
    """
    if "negative_curvature" not in surface:
        raise InputError("surface", "must hold a convexity map", sorted(map(str, surface.data_vars)))
    measured = surface["status"] == STATUS_MEASURED
    answer = surface["negative_curvature"].where(measured)
    counts = {name: int((answer == value).sum()) for name, value in _NEGATIVE.items()}
    checks = int(surface["cold_check"].where(measured).sum())
    missed = int(surface["cold_disagreement"].where(measured).sum())
    found = "none found by" if missed == 0 else f"{missed} found and redone by"
    return {
        **{name.replace(" ", "_"): count for name, count in counts.items()},
        "not_finite": int(measured.sum()) - sum(counts.values()),
        "products_per_point": float(surface["products"].where(measured).mean()),
        "cold_checks": checks,
        "cold_disagreements": missed,
        "statement": f"missed crossings: {found} cold checks at {checks} points",
    }
