"""The trace, the trace that filter-normalized pictures show, and the trace of every layer; each with its error.

Hutchinson 1989: ``E z^T A z = tr A`` for independent entries of mean 0 and variance 1. Meyer, Musco, Musco and
Woodruff, "Hutch++", 2021, algorithm 1: the trace on the range of a sketch is exact, so that only the rest has an error.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lowland.core.errors import InputError, require
from lowland.core.facts import ShowsFacts, with_error
from lowland.core.params import ParameterSpace
from lowland.core.risk import EmpiricalRisk
from lowland.core.seeds import normal, rademacher
from lowland.curvature.counted import counted
from lowland.curvature.eigenvalues import Source, as_operator
from lowland.curvature.operator import AbstractOperator
from lowland.curvature.risk_operator import AbstractRiskOperator


@dataclass(repr=False, frozen=True, slots=True)
class ProbeEstimate(ShowsFacts):
    """A mean over random probes.

    Args:
        value: The estimate.
        standard_error: Standard deviation over probes / sqrt(probes); NaN for a single probe.
        probes: Number of random vectors that the error comes from.
        products: Number of products spent in all.
        method: How it was made.
        seed: Seed of the probes.
        samples: What each probe gave, shape [probes]; its spread is that over random directions.
        hint: What the number does not hold, where that is known.
    """

    value: float
    standard_error: float
    probes: int
    products: int
    method: str
    seed: int
    samples: NDArray[np.float64] = field(repr=False, compare=False)
    hint: str = ""

    def _facts(self) -> dict[str, str]:
        shown = {"": with_error(self.value, self.standard_error), "n": str(self.probes), "products": str(self.products)}
        return shown | {"by": self.method, "hint:": self.hint}

    @property
    def skewed(self) -> bool:
        """Whether samples are so skewed that the interval covers less than it says; False is no promise."""
        # fewer than 25 times the squared skewness, as for bands; a tail that no sample has hit shows in none
        away = self.samples - self.samples.mean()
        variance = float((away**2).mean())
        return variance > 0 and self.probes < 25 * float((away**3).mean()) ** 2 / variance**3

    @property
    def spread(self) -> float:
        """Standard deviation over probes: how much a single direction may deviate."""
        return self.standard_error * math.sqrt(self.probes)

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Return both ends of a confidence interval of a nominal coverage, by t quantiles, since probes are few.

        On planted spectra of 200 eigenvalues (flat, two-valued, with one and with ten outliers) 95 % intervals of
        Hutch++ covered 0.90 to 0.98. Plain probes of one eigenvalue far from all others are as skewed as a squared
        normal number: 12 of them covered 0.84, which `skewed` mostly tells.
        """
        from scipy.special import stdtrit  # slow to import; most workers do without

        half = float(stdtrit(self.probes - 1, 0.5 + level / 2)) * self.standard_error if self.probes > 1 else math.nan
        return self.value - half, self.value + half


def signs(operator: AbstractOperator, seed: int, index: int) -> Tensor:
    """Return the random signs of one probe; by parameter name where the operator has names."""
    like = torch.empty(operator.size, dtype=operator.dtype, device=operator.device)
    if operator.shapes is None:
        return rademacher(like, seed, "probe", index)
    parts = operator.split(like).items()
    return torch.cat([rademacher(part, seed, "probe", index, name).reshape(-1) for name, part in parts])


def trace(
    source: Source,
    *,
    method: Literal["hutch++", "hutchinson"] = "hutch++",
    products: int = 60,
    chunk: int = 8,
    seed: int = 0,
    progress: bool = False,
) -> ProbeEstimate:
    """Return the trace with its standard error.

    Memory: up to 3 sets of weights for each of `chunk` vectors, one for each product, and a dozen more.

    Args:
        source: A risk (its Hessian) or an operator.
        method: ``"hutch++"`` (default; far better where few eigenvalues dominate, as in trained networks): a third of
            the products for a sketch, a third for the exact part, a third for the rest. ``"hutchinson"``: one product
            a probe.
        products: Products to spend; at least 2, for Hutch++ at least 6. Default 60.
        chunk: Vectors multiplied at once: they share graphs that do not fit into memory. Default 8.
        seed: Seed of the probes.
        progress: Show a bar, in a terminal or a notebook. Default False.

    Example:
        >>> from lowland.curvature.operator import MatrixOperator
        >>> trace(MatrixOperator(torch.diag(torch.arange(5.0, dtype=torch.float64)))).value
        10.0
    """
    require(method in ("hutch++", "hutchinson"), "method", 'must be "hutch++" or "hutchinson"', method)
    least = 6 if method == "hutch++" else 2
    require(products >= least, "products", f"must be at least {least} for {method}", products)
    require(chunk >= 1, "chunk", "must be at least 1", chunk)
    operator = as_operator(source)
    before = operator.products
    sketch = products // 3 if method == "hutch++" else 0
    count, known = products - 2 * sketch, torch.zeros(operator.size, 0, dtype=operator.dtype, device=operator.device)
    with operator, counted(operator, progress, "trace", products):
        if sketch:
            sketched = (signs(operator, seed, count + index) for index in range(min(sketch, operator.size)))
            known = torch.linalg.qr(torch.stack([image for _, image in images(operator, sketched, chunk)], 1))[0]
        exact = float(_forms(operator, known.unbind(1), chunk).sum())
        probes = (signs(operator, seed, index) for index in range(count))
        outside = (probe - known @ (known.T @ probe) for probe in probes)
        rest = np.zeros(2) if known.shape[1] == operator.size else _forms(operator, outside, chunk)
    return estimate(exact + rest, operator.products - before, method, seed)


def estimate(samples: NDArray[np.float64], products: int, method: str, seed: int) -> ProbeEstimate:
    """Return the mean of independent samples with its standard error."""
    count = len(samples)
    error = float(samples.std(ddof=1) / math.sqrt(count)) if count > 1 else math.nan
    return ProbeEstimate(float(samples.mean()), error, count, products, method, seed, samples)


def images(operator: AbstractOperator, vectors: Iterable[Tensor], chunk: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield each vector with its product, so many multiplied at once."""
    drawn = iter(vectors)
    with operator:
        while some := list(itertools.islice(drawn, chunk)):
            yield from zip(some, operator.apply(some), strict=True)


def _forms(operator: AbstractOperator, vectors: Iterable[Tensor], chunk: int) -> NDArray[np.float64]:
    """Return v^T A v for each vector."""
    return np.asarray([float(v.double() @ w.double()) for v, w in images(operator, vectors, chunk)])


def filter_weighted_trace(
    source: EmpiricalRisk | AbstractRiskOperator,
    *,
    directions: int = 48,
    chunk: int = 8,
    seed: int = 0,
    progress: bool = False,
) -> ProbeEstimate:
    """Return the mean of the Hessian's curvature at the center over all filter-normalized directions.

    For smooth networks that is the mean curvature of the pictures. With kinks (ReLU, max pooling) it is not: second
    differences along lines also hold the jumps of the slope, which no Hessian sees; `picture_curvature` gives both.

    ``sum_j (||w_j||^2 / n_j) tr(H_jj)`` over the filters j with n_j entries. Each sample is ``d^T H d`` for a random
    direction d whose filters have the norms of the weights' (Li et al. 2018, section 4; biases and norm parameters
    stay), which has that mean; the spread over samples is what single pictures scatter by.

    Memory: up to 3 sets of weights for each of `chunk` vectors, and a dozen more.

    Args:
        source: A risk, or an operator made from one.
        directions: Number of random directions, at least 2; one product each. Default 48.
        chunk: Vectors multiplied at once. Default 8.
        seed: Seed of the directions.
        progress: Show a bar, in a terminal or a notebook. Default False.

    Example:
        >>> from lowland.core.risk import EmpiricalRisk
        >>> layer = torch.nn.Linear(1, 1, bias=False)
        >>> _ = torch.nn.init.constant_(layer.weight, 3.0)
        >>> risk = EmpiricalRisk(layer, torch.nn.MSELoss(), [(torch.ones(4, 1), torch.zeros(4, 1))])
        >>> round(filter_weighted_trace(risk, directions=2).value, 4)  # ||w||^2 * d^2/dw^2 w^2 = 9 * 2
        18.0
    """
    operator = as_operator(source)
    if not isinstance(operator, AbstractRiskOperator):
        raise InputError("source", "must be a risk or an operator of one", type(operator).__name__)
    require(directions >= 2, "directions", "must be at least 2", directions)
    before = operator.products
    with operator, counted(operator, progress, "filter trace", directions):
        weights = [parameter.detach().to(operator.dtype) for parameter in operator.space.tensors]
        drawn = (filter_direction(operator.space, weights, seed, index) for index in range(directions))
        values = _forms(operator, (torch.cat([part.reshape(-1) for part in parts]) for parts in drawn), chunk)
    found = estimate(values, operator.products - before, "filter-normalized directions", seed)
    names = ", ".join(operator.kinks)
    return replace(found, hint=f"without the kinks of {names}: `picture_curvature` has them" if names else "")


def filter_direction(space: ParameterSpace, weights: Sequence[Tensor], seed: int, index: int) -> list[Tensor]:
    """Return a random direction whose filters have the weights' norms; fixed tensors stay."""
    return [
        torch.zeros_like(w) if rule.kind == "fixed" else rule.matched(normal(w, seed, "probe", index, name), w)
        for name, w, rule in zip(space.names, weights, space.rules, strict=True)
    ]
