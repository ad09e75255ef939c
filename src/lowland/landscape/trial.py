"""How points are computed, found by a short trial: batch size, memory layout, precision.

The driver decides once, before the first point; the decision is stored, and every worker and every resume obeys it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from typing import Any, Final, Literal, TypeAlias

import numpy as np
import torch

from lowland.core.exact import all_moments
from lowland.core.risk import EmpiricalRisk
from lowland.core.types import Batch
from lowland.engine.base import Point
from lowland.landscape.grid import Grid, levels
from lowland.landscape.kernel import Kernel, Survey, computing
from lowland.landscape.layout import laid_out, rebatched
from lowland.landscape.refine import Tolerance, too_far

__all__ = ["BatchSize", "Precision", "decide"]

BatchSize: TypeAlias = "int | Literal['auto'] | None"
Precision: TypeAlias = Literal["float32", "bfloat16", "auto"]

_SIZES: Final = (64, 128, 256, 512)
_SAMPLES: Final = 256
"""Samples measured at each look."""
_GAIN: Final = 1.25
"""bfloat16 must be this much faster: to measure its error takes 18 points, a tenth of a usual picture."""


def decide(
    survey: Survey, grid: Grid, *, batch_size: BatchSize, precision: Precision, tolerance: Tolerance
) -> tuple[Kernel, dict[str, Any]]:
    """Choose how the points of a survey are computed.

    Args:
        survey: The survey, with the kernel asked for as far as it is fixed.
        grid: The grid.
        batch_size: A number, None for the risk's own batches, or ``"auto"`` for a trial of sizes and layouts.
        precision: The type of forward passes, or ``"auto"``: bfloat16 where it is faster and, on points spread over the
            grid, no further from float32 than half the tolerance.
        tolerance: What bfloat16 is held to.

    Returns:
        The kernel, and what the trial found as plain JSON values.
    """
    wanted: tuple[Any, ...] = ("float32", "bfloat16") if precision == "auto" else (precision,)
    candidates = [kernel for kind in wanted for kernel in _candidates(survey, batch_size, kind)]
    times = _race(survey.first, candidates) if len(candidates) > 1 else {candidates[0]: 0.0}
    best: dict[str, tuple[float, Kernel]] = {}
    for kind in wanted:
        best[kind] = min(((t, k) for k, t in times.items() if k.precision == kind), key=lambda pair: pair[0])
    report: dict[str, Any] = {f"seconds_per_sample_{kind}": seconds for kind, (seconds, _) in best.items() if seconds}
    if precision != "auto":
        return best[precision][1], report
    exact, fast = best["float32"], best["bfloat16"]
    if exact[0] < _GAIN * fast[0]:
        return exact[1], {**report, "precision": "float32: bfloat16 is not faster here"}
    error = _error(survey, grid, exact[1], fast[1], tolerance)
    report["bfloat16_error"] = error
    if error["in_units_of_tolerance"] <= 0.5:
        return fast[1], {**report, "precision": "bfloat16: within half the tolerance"}
    return exact[1], {**report, "precision": "float32: bfloat16 is not exact enough here"}


def _candidates(survey: Survey, batch_size: BatchSize, precision: Any) -> list[Kernel]:
    given = replace(survey.kernel, precision=precision)
    if batch_size != "auto":
        return [replace(given, batch_size=batch_size)]
    images = any(p.ndim == 4 for p in survey.first.model.parameters())
    layouts: Sequence[Any] = ("contiguous", "channels_last") if images else ("contiguous",)
    own = [batch.size for batch in survey.first.batches()]
    count = sum(own)
    same = own[0] if len(set(own[:-1])) == 1 else 0  # the risk's own batches have this size already
    sizes: set[int | None] = {None, *(size for size in _SIZES if size < count and size != same)}
    if not images or survey.first.device.type != "cpu":
        sizes.add(count)  # convolutions on a processor want batches that fit its caches
    if survey.first.batch_norm == "batch":  # the partition into batches is part of what is measured
        sizes = {None}
    ordered = sorted(sizes, key=lambda size: size or 0)
    return [replace(given, batch_size=size, memory_format=layout) for layout, size in product(layouts, ordered)]


def _race(risk: EmpiricalRisk, candidates: Sequence[Kernel]) -> dict[Kernel, float]:
    """Return seconds per sample of each candidate: turn by turn, so that other load on the machine hits all alike."""
    times = {kernel: _seconds(risk, kernel) for kernel in candidates}  # with what is done once: good for a first choice
    for kept in (6, 3, 3):
        for kind in ("float32", "bfloat16"):
            some = [kernel for kernel in candidates if kernel.precision == kind]
            for kernel in sorted(some, key=times.__getitem__)[:kept]:
                times[kernel] = min(times[kernel], _seconds(risk, kernel))
    return times


@torch.no_grad()
def _seconds(risk: EmpiricalRisk, kernel: Kernel) -> float:
    """Return what a sample takes with a kernel, in one look."""
    with risk.prepared(), laid_out(risk.model, kernel.memory_format):
        batches: list[Batch] = []
        for batch in rebatched(risk.batches(), kernel.batch_size, kernel.memory_format):
            batches.append(batch)
            if sum(b.size for b in batches) >= _SAMPLES:
                break
        _wait(risk.device)
        start = time.perf_counter()
        for batch in batches:
            with computing(risk.device, kernel.precision):
                measured = risk.measure(batch)
            all_moments(measured)
        _wait(risk.device)
        return (time.perf_counter() - start) / sum(batch.size for batch in batches)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _error(survey: Survey, grid: Grid, exact: Kernel, fast: Kernel, tolerance: Tolerance) -> dict[str, float]:
    """Return how far two kernels are apart on points spread over the grid."""
    axes = [levels(n)[min(1, len(levels(n)) - 1)] for n in grid.shape]
    spread = np.ravel_multi_index(np.array(list(product(*axes))).T, grid.shape)
    indices = sorted({*spread.tolist(), grid.center()})
    points = [Point(int(i), grid.coordinates(int(i))) for i in indices]
    found = []
    for kernel in (exact, fast):
        task = replace(survey, kernel=kernel, probes=(), paired=False)
        with task.placed() as context:
            rows = [row for point in points for row in task(context, [point], [None])]
        found.append(np.array([np.atleast_1d(np.asarray(row.values["loss"])) for row in rows]))
    true, other = found
    finite = np.isfinite(true) & np.isfinite(other)
    same = (np.isfinite(true) == np.isfinite(other)).all()
    if not same or not finite.any():
        return {"in_units_of_tolerance": float("inf"), "of_range": float("inf"), "of_value": float("inf")}
    span = float(np.ptp(true[finite])) or 1.0
    error = np.abs(other - true)[finite]
    return {
        "in_units_of_tolerance": float(too_far(error, true[finite], span, tolerance).max()),
        "of_range": float(error.max() / span),
        "of_value": float((error / np.maximum(np.abs(true[finite]), 1e-3 * span)).max()),
        "points": len(points),
    }
