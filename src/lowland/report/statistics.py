"""Means with t intervals, paired differences, and how they are written."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

LEAST_SEEDS = 4
"""Below that, seeds are shown one by one: an interval from three points would say more than they do."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean with its t interval; ``low`` and ``high`` are NaN below two values."""

    mean: float
    low: float
    high: float
    values: tuple[float, ...]


def t_interval(values: Sequence[float], *, level: float = 0.95) -> Interval:
    """Return the mean and its t interval ``mean +- t_{n-1} s / sqrt(n)``."""
    array = np.asarray(values, dtype=np.float64)
    mean = float(array.mean()) if array.size else math.nan
    if array.size < 2:
        return Interval(mean, math.nan, math.nan, tuple(array.tolist()))
    from scipy.special import stdtrit  # a tenth of a second that a page of single seeds does not need

    half = float(stdtrit(array.size - 1, 0.5 + level / 2) * array.std(ddof=1) / math.sqrt(array.size))
    return Interval(mean, mean - half, mean + half, tuple(array.tolist()))


def paired_interval(values: Mapping[int, float], baseline: Mapping[int, float]) -> Interval | None:
    """Return the t interval of ``values - baseline`` over the seeds that both have."""
    seeds = sorted(set(values) & set(baseline))
    return t_interval([values[seed] - baseline[seed] for seed in seeds]) if seeds else None


def show(value: float | None, digits: int = 3) -> str:
    """Write a number with significant digits; a missing one is a dash."""
    if value is None:
        return "–"
    if not math.isfinite(value):
        return {math.inf: "+∞", -math.inf: "−∞"}.get(value, "not a number")
    if value != 0 and not 1e-3 <= abs(value) < 1e6:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        return f"{mantissa}e{int(exponent)}".replace("-", "−")
    decimals = max(0, digits - 1 - (math.floor(math.log10(abs(value))) if value else 0))
    return f"{value:.{decimals}f}".replace("-", "−")


def show_known(value: float | None, digits: int = 3) -> str:
    """Write a number; one that does not exist here, None or NaN, is a dash."""
    return "–" if value is None or math.isnan(value) else show(value, digits)


def show_interval(interval: Interval | None, *, factor: float = 1.0, sign: bool = False, decimals: int = 2) -> str:
    """Write an interval; fewer than four values are listed one by one."""
    if interval is None:
        return "–"

    def one(value: float) -> str:
        return f"{factor * value:{'+' if sign else ''}.{decimals}f}".replace("-", "−")

    if len(interval.values) < LEAST_SEEDS:
        return ", ".join(one(value) for value in interval.values) or "–"
    return f"{one(interval.mean)} [{one(interval.low)}, {one(interval.high)}]"
