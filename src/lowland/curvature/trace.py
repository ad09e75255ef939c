"""The trace, the trace that filter-normalized pictures show, and the trace of every layer; each with its error.

Hutchinson 1989: ``E z^T A z = tr A`` for independent entries of mean 0 and variance 1. Meyer, Musco, Musco and
Woodruff, "Hutch++", 2021, algorithm 1: the trace on the range of a sketch is exact, so that only the rest has an error.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import t as student
from torch import Tensor

from lowland.core.errors import InputError
from lowland.core.risk import EmpiricalRisk
from lowland.core.seeds import normal, rademacher
from lowland.core.units import UnitRule
from lowland.curvature.eigenvalues import Source, as_operator
from lowland.curvature.operator import AbstractOperator
from lowland.curvature.risk_operator import AbstractRiskOperator

__all__ = ["ProbeEstimate", "estimate", "filter_weighted_trace", "signs", "trace"]


@dataclass(frozen=True, slots=True)
class ProbeEstimate:
    """A mean over random probes.

    Args:
        value: The estimate.
        standard_error: Standard deviation over probes / sqrt(probes); NaN for a single probe.
        probes: Number of random vectors that the error comes from.
        products: Number of products spent in all.
        method: How it was made.
        seed: Seed of the probes.
        samples: What each probe gave, shape [probes]; its spread is that over random directions.
    """

    value: float
    standard_error: float
    probes: int
    products: int
    method: str
    seed: int
    samples: NDArray[np.float64] = field(repr=False, compare=False)

    @property
    def spread(self) -> float:
        """Standard deviation over probes: how much a single direction may deviate."""
        return self.standard_error * math.sqrt(self.probes)

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Return a confidence interval by t quantiles, since probes are few.

        Args:
            level: Nominal coverage. Default 0.95.

        Returns:
            Lower and upper end.
        """
        half = (
            float(student.ppf(0.5 + level / 2, self.probes - 1)) * self.standard_error if self.probes > 1 else math.nan
        )
        return self.value - half, self.value + half


def signs(operator: AbstractOperator, seed: int, index: int) -> Tensor:
    """Return the random signs of one probe; by parameter name where the operator has names."""
    if operator.shapes is None:
        like = torch.empty(operator.size, dtype=operator.dtype, device=operator.device)
        return rademacher(like, seed, "probe", index)
    parts = []
    for name, shape in operator.shapes.items():
        like = torch.empty(shape, dtype=operator.dtype, device=operator.device)
        parts.append(rademacher(like, seed, "probe", index, name).reshape(-1))
    return torch.cat(parts)


def trace(
    source: Source,
    *,
    method: Literal["hutch++", "hutchinson"] = "hutch++",
    products: int = 60,
    chunk: int = 8,
    seed: int = 0,
) -> ProbeEstimate:
    """Return the trace with its standard error.

    Args:
        source: A risk (its Hessian) or an operator.
        method: ``"hutch++"`` (default; far better where few eigenvalues dominate, as in trained networks): a third of
            the products for a sketch, a third for the exact part, a third for the rest. ``"hutchinson"``: one product
            a probe.
        products: Products to spend; at least 2, for Hutch++ at least 6. Default 60.
        chunk: Vectors multiplied at once: they share graphs that do not fit into memory. Default 8.
        seed: Seed of the probes.

    Returns:
        Value, standard error and cost.

    Raises:
        InputError: If an argument is out of range.

    Example:
        >>> from lowland.curvature.operator import MatrixOperator
        >>> trace(MatrixOperator(torch.diag(torch.arange(5.0, dtype=torch.float64)))).value
        10.0
    """
    if method not in ("hutch++", "hutchinson"):
        raise InputError("method", 'must be "hutch++" or "hutchinson"', method)
    least = 6 if method == "hutch++" else 2
    if products < least:
        raise InputError("products", f"must be at least {least} for {method}", products)
    if chunk < 1:
        raise InputError("chunk", "must be at least 1", chunk)
    operator = as_operator(source)
    before = operator.products
    with operator:
        if method == "hutchinson":
            exact, count, known = 0.0, products, None
        else:
            sketch, count = products // 3, products - 2 * (products // 3)
            known = _sketched_range(operator, min(sketch, operator.size), chunk, seed, first=count)
            exact = _sum_of_forms(operator, known, chunk)
        rest = (
            _forms(operator, known, count, chunk, seed)
            if known is None or known.shape[1] < operator.size
            else np.zeros(2)
        )
    return estimate(exact + rest, operator.products - before, method, seed)


def estimate(samples: NDArray[np.float64], products: int, method: str, seed: int) -> ProbeEstimate:
    """Return the mean of independent samples with its standard error."""
    count = len(samples)
    error = float(samples.std(ddof=1) / math.sqrt(count)) if count > 1 else math.nan
    return ProbeEstimate(float(samples.mean()), error, count, products, method, seed, samples)


def _sketched_range(operator: AbstractOperator, size: int, chunk: int, seed: int, *, first: int) -> Tensor:
    """Return an orthonormal basis of A S for a random sketch S, shape [n, size]."""
    images: list[Tensor] = []
    for start in range(0, size, chunk):
        vectors = [signs(operator, seed, first + index) for index in range(start, min(start + chunk, size))]
        images += operator.apply(vectors)
    basis: Tensor = torch.linalg.qr(torch.stack(images, 1))[0]
    return basis


def _sum_of_forms(operator: AbstractOperator, basis: Tensor, chunk: int) -> float:
    """Return tr(Q^T A Q)."""
    columns = list(basis.unbind(1))
    total = 0.0
    for start in range(0, len(columns), chunk):
        some = columns[start : start + chunk]
        total += sum(float(v.double() @ w.double()) for v, w in zip(some, operator.apply(some), strict=True))
    return total


def _forms(operator: AbstractOperator, known: Tensor | None, count: int, chunk: int, seed: int) -> NDArray[np.float64]:
    """Return z^T A z for random signs z, outside a known range."""
    values: list[float] = []
    for start in range(0, count, chunk):
        vectors = [signs(operator, seed, index) for index in range(start, min(start + chunk, count))]
        if known is not None:
            vectors = [vector - known @ (known.T @ vector) for vector in vectors]
        images = operator.apply(vectors)
        values += [float(v.double() @ w.double()) for v, w in zip(vectors, images, strict=True)]
    return np.asarray(values)


def filter_weighted_trace(
    source: EmpiricalRisk | AbstractRiskOperator, *, directions: int = 48, chunk: int = 8, seed: int = 0
) -> ProbeEstimate:
    """Return the mean of the Hessian's curvature at the center over all filter-normalized directions.

    For smooth networks that is the mean curvature of the pictures. With kinks (ReLU, max pooling) it is not: second
    differences along lines also hold the jumps of the slope, the more the finer the grid, which no Hessian sees.

    ``sum_j (||w_j||^2 / n_j) tr(H_jj)`` over the filters j with n_j entries. Each sample is ``d^T H d`` for a random
    direction d whose filters have the norms of the weights' (Li et al. 2018, section 4; biases and norm parameters
    stay), which has that mean; the spread over samples is what single pictures scatter by.

    Args:
        source: A risk, or an operator made from one.
        directions: Number of random directions, one product each. Default 48.
        chunk: Vectors multiplied at once. Default 8.
        seed: Seed of the directions.

    Returns:
        Value, standard error and spread.

    Raises:
        InputError: If the operator does not belong to a risk, or there are fewer than 2 directions.

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
    if directions < 2:
        raise InputError("directions", "must be at least 2", directions)
    before, values = operator.products, []
    with operator:
        for start in range(0, directions, chunk):
            some = [_direction(operator, seed, index) for index in range(start, min(start + chunk, directions))]
            values += [float(v.double() @ w.double()) for v, w in zip(some, operator.apply(some), strict=True)]
    return estimate(np.asarray(values), operator.products - before, "filter-normalized directions", seed)


def _direction(operator: AbstractRiskOperator, seed: int, index: int) -> Tensor:
    parts = []
    for name, parameter, rule in operator.space:
        weight = parameter.detach().to(operator.dtype)
        parts.append(_normalized(normal(weight, seed, "probe", index, name), weight, rule).reshape(-1))
    return torch.cat(parts)


def _normalized(values: Tensor, weight: Tensor, rule: UnitRule) -> Tensor:
    if rule.kind == "fixed":
        return torch.zeros_like(weight)
    units = rule.split(values)
    lengths = torch.linalg.vector_norm(units, dim=1).clamp(min=torch.finfo(units.dtype).tiny)
    return rule.join(units * (rule.norms(weight) / lengths)[:, None], weight.shape)
