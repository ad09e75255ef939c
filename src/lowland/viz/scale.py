"""Color scales: limits, levels and ticks, shared by everything that is to be compared."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from lowland.core.errors import InputError, require
from lowland.viz.field import FloatArray
from lowland.viz.spec import Scale

_LEAST_LEVELS = 9  # fewer leave the floor of a basin blank, more than twice as many merge in print
_LOG_FROM = 1.5  # below this ratio a logarithm changes nothing but the roundness of the labels


def scale_of(
    values: FloatArray,
    label: str,
    log: bool | None,
    limits: tuple[float | None, float | None],
    levels: Iterable[float] | int | None,
    color_map: str,
) -> Scale:
    """Make one scale over finite values."""
    require(values.size != 0, "surface", "has no finished point with a finite value, so there is nothing to draw")
    low = float(values.min()) if limits[0] is None else float(limits[0])
    high = float(values.max()) if limits[1] is None else float(limits[1])
    if log is None:
        log = low > 0 and high >= _LOG_FROM * low
    elif log and low <= 0:
        raise InputError("log", "needs positive values only", low, "use log=False, or limits that start above 0")
    require(high >= low and (high != low or limits == (None, None)), "limits", "must ascend", (low, high))
    if high == low:  # a constant field: any width will do, as long as it has one
        half = 0.05 * abs(low) or 0.05
        low, high = low - half, high + half
    if isinstance(levels, int) or levels is None:
        wanted = _LEAST_LEVELS if levels is None else levels
        require(wanted >= 1, "levels", "must be at least 1", wanted)
        chosen = log_levels(low, high, wanted) if log else linear_levels(low, high, wanted)
    else:
        chosen = _checked(tuple(float(level) for level in levels), log)
    return Scale(label, low, high, chosen, log, nice_ticks(low, high, log), color_map)


def log_levels(low: float, high: float, wanted: int) -> tuple[float, ...]:
    """Return levels of the coarsest Renard series (k per decade) that puts enough of them between two values."""
    first, last = math.log10(low), math.log10(high)
    for k in (1, 2, 5, 10, 20, 40, 80, 160, 320, 640):
        start, stop = math.ceil(first * k - 1e-9), math.floor(last * k + 1e-9)
        if stop - start + 1 >= wanted:
            return tuple(10 ** (j / k) for j in range(start, stop + 1))
    return tuple(float(v) for v in np.geomspace(low, high, wanted + 2)[1:-1])


def linear_levels(low: float, high: float, wanted: int) -> tuple[float, ...]:
    """Return multiples of the largest round step (1, 2, 2.5 or 5 times a power of ten) with enough of them."""
    width = high - low
    decade = 10.0 ** math.floor(math.log10(width))
    for step in (f * decade / d for d in (1, 10, 100, 1000) for f in (5, 2.5, 2, 1)):
        start, stop = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if stop - start + 1 >= wanted:
            return tuple(float(f"{j * step:.12g}") for j in range(start, stop + 1))
    return tuple(float(v) for v in np.linspace(low, high, wanted + 2)[1:-1])


def nice_ticks(low: float, high: float, log: bool) -> tuple[float, ...]:
    """Return round values between two limits for a color bar or an axis."""
    if not log or high < 3 * low:
        return linear_levels(low, high, 4)
    for mantissas in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7)):
        decades = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
        ticks = tuple(float(f"{m}e{e}") for e in decades for m in mantissas)
        inside = tuple(t for t in ticks if low * (1 - 1e-9) <= t <= high * (1 + 1e-9))
        if len(inside) >= 4:
            return inside[:: -(-len(inside) // 9)]
    return inside


def _checked(levels: tuple[float, ...], log: bool) -> tuple[float, ...]:
    if not levels or not all(math.isfinite(level) for level in levels):
        raise InputError("levels", "must be finite and at least one", levels)
    require(not log or min(levels) > 0, "levels", "must be positive on a logarithmic scale", levels)
    places = np.log10(levels) if log else np.asarray(levels)
    steps = np.diff(places)
    even = steps.size == 0 or (steps.min() > 0 and np.allclose(steps, steps.mean(), rtol=1e-6, atol=0))
    if not even:
        # Plotly draws evenly spaced levels only; other levels would differ from backend to backend.
        kind = "evenly spaced in the logarithm" if log else "evenly spaced"
        raise InputError("levels", f"must ascend and be {kind}", levels)
    return levels
