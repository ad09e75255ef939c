"""Identity is behavior: before a store is continued or returned, the present call measures two of its points again.

Names tell little: two lambdas, a closure's constant, an activation, a data object of a kind of its own look the same in
a recipe. What they compute does not.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lowland.core.errors import StoreError
from lowland.core.schema import STATUS_MEASURED
from lowland.landscape.grid import Grid
from lowland.landscape.progress import SurveyRun
from lowland.results.dataset import SurfaceWriter

_CLOSE = 1e-6
"""Relative difference that other threads, devices and processors make."""


def check_stored(run: SurveyRun, keeper: SurfaceWriter, grid: Grid, *, exactly: bool, probes: Sequence[str]) -> None:
    """Measure two stored points again, and refuse the store where they are others."""
    # exactly: to the bit; else as near as other threads, devices, processors and versions come. Numbers of probes may
    # be counts and codes, which have no "near".
    chosen = _chosen(grid, keeper.status)
    for index, result in zip(chosen, run.again(chosen), strict=True):
        place = ", ".join(f"{value:.4g}" for value in grid.coordinates(index % grid.size))
        if result.failed:
            raise StoreError(f"the store holds ({place}), which this call cannot measure: {result.error}")
        old = {name: run.values(name, np.array([index]))[0] for name in result.value.values}
        new = {name: np.atleast_1d(np.asarray(value, np.float64)) for name, value in result.value.values.items()}
        scale = 0.0 if exactly else _CLOSE * float(np.abs(old.get("loss", np.zeros(1))).max())
        wrong = [
            f"{name} {_shown(old[name])} there, {_shown(new[name])} here"
            for name in new
            if (exactly or name not in probes)
            and not np.allclose(old[name], new[name], rtol=0.0 if exactly else _CLOSE, atol=scale, equal_nan=True)
        ]
        if wrong:
            raise StoreError(
                f"the store is of another survey: at ({place}) {'; '.join(wrong)}; loss, data or model behave "
                "otherwise, whatever their names; choose another store"
            )


def _chosen(grid: Grid, status: NDArray[np.uint8]) -> list[int]:
    """Return the numbers of the measured points nearest to and farthest from the origin."""
    measured = np.flatnonzero(status == STATUS_MEASURED)
    apart = np.array([np.linalg.norm(grid.coordinates(int(index) % grid.size)) for index in measured])
    return sorted({int(measured[apart.argmin()]), int(measured[len(apart) - 1 - apart[::-1].argmax()])})


def _shown(values: NDArray[np.float64]) -> str:
    return ", ".join(f"{value:.8g}" for value in values)
