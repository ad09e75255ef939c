"""How points are computed, found by a short trial: batch size, memory layout, folded norms, precision.

The driver decides once, before the first point; the decision is stored, and every worker and every resume obeys it.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain, product
from typing import Any, Final, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lowland.core.contexts import forked_rng, weights_restored
from lowland.core.moments import Tally
from lowland.core.risk import EmpiricalRisk
from lowland.core.types import Batch
from lowland.landscape.folding import foldable, folded
from lowland.landscape.grid import Grid, levels
from lowland.landscape.layout import rebatched
from lowland.landscape.surface_task import ComputeSettings, Point, Request, Row, SurfaceTask, computing
from lowland.landscape.tolerance import Tolerance, too_far

BatchSize: TypeAlias = "int | Literal['auto'] | None"
Precision: TypeAlias = Literal["float32", "bfloat16", "auto"]

_SIZES: Final = (64, 128, 256, 512)
_SAMPLES: Final = 256
"""Samples measured at each look."""
_SMALL: Final = 1024
"""Numbers per sample up to which the whole data may be one batch of a convolution on a processor, where one process has
its caches for itself; everywhere else convolutions want batches that fit them."""
_TOGETHER: Final = (16, 0.01)
"""Most points handed out together, and the seconds that they may take: where handing out takes a share of a point."""
_GAIN: Final = 1.1
"""bfloat16 must be this much faster to be worth its error and the nine points in full precision that it takes."""


def autotune(
    survey: SurfaceTask, grid: Grid, request: Request, workers: int = 1
) -> tuple[ComputeSettings, dict[str, Any], dict[int, Row]]:
    """Choose how the points of a survey are computed."""
    precision = request.precision
    wanted: tuple[Any, ...] = ("float32", "bfloat16") if precision == "auto" else (precision,)
    candidates = [kernel for kind in wanted for kernel in _candidates(survey, grid, request.batch_size, kind, workers)]
    times = _race(survey.first, candidates) if len(candidates) > 1 else {candidates[0]: 0.0}
    best: dict[str, tuple[float, ComputeSettings]] = {}
    for kind in wanted:
        seconds, kernel = min(((t, k) for k, t in times.items() if k.precision == kind), key=lambda pair: pair[0])
        best[kind] = seconds, _together(survey, kernel, seconds) if request.batch_size == "auto" else kernel
    report: dict[str, Any] = {f"seconds_per_sample_{kind}": seconds for kind, (seconds, _) in best.items() if seconds}
    if precision != "auto":
        return best[precision][1], report, {}
    exact, fast = best["float32"], best["bfloat16"]
    if exact[0] < _GAIN * fast[0]:
        return exact[1], {**report, "precision": "float32: bfloat16 is not faster here"}, {}
    truth = _spread(replace(survey, kernel=exact[1], probes=(), paired=False), grid)
    rows = _spread(replace(survey, kernel=fast[1], probes=()), grid)
    error = report["bfloat16_error"] = _error(_losses(truth), _losses(rows), request.tolerance)
    if error["in_units_of_tolerance"] <= 0.5:
        return fast[1], {**report, "precision": "bfloat16: within half the tolerance"}, {} if survey.probes else rows
    return exact[1], {**report, "precision": "float32: bfloat16 is not exact enough here"}, {}


def _candidates(
    survey: SurfaceTask, grid: Grid, batch_size: BatchSize, precision: Any, workers: int
) -> list[ComputeSettings]:
    given = replace(survey.kernel, precision=precision)
    if batch_size != "auto":
        return [replace(given, batch_size=batch_size)]
    images = any(p.ndim == 4 for p in survey.first.model.parameters())
    layouts: Sequence[Any] = ("contiguous", "channels_last") if images else ("contiguous",)
    with forked_rng():  # a loader draws a seed each time it is read
        own = [batch.size for batch in survey.first.batches()]
    count = sum(own)
    same = own[0] if len(set(own[:-1])) == 1 else 0  # the risk's own batches have this size already
    sizes: set[int | None] = {None, *(size for size in _SIZES if size < count and size != same)}
    fits = workers == 1 and _numbers(survey.first) <= _SMALL
    if not images or survey.first.device.type != "cpu" or fits:
        sizes.add(count)
    if survey.first.batch_norm == "batch":  # the partition into batches is part of what is measured
        sizes = {None}
    ordered, folds = (
        sorted(sizes, key=lambda size: size or 0),
        (False, True) if images and _folds(survey, grid) else (False,),
    )
    return [
        replace(given, batch_size=size, memory_format=layout, folded=fold)
        for fold, layout, size in product(folds, layouts, ordered)
    ]


def _together(survey: SurfaceTask, kernel: ComputeSettings, seconds: float) -> ComputeSettings:
    """Return a kernel with as many points together as take little time, where none are asked for."""
    point, (most, limit) = 0.0, _TOGETHER
    if kernel.chunk != 1 or survey.probes or not seconds:
        return kernel
    with forked_rng():  # a loader draws a seed each time it is read
        for batch in chain.from_iterable(risk.batches() for risk in survey.risks.values()):
            point += seconds * batch.size
            if point > limit / 2:
                return kernel
    return replace(kernel, chunk=min(most, int(limit / point)))


def _folds(survey: SurfaceTask, grid: Grid) -> bool:
    """Tell whether norms can be folded into convolutions: where nothing else looks at either, and values agree."""
    risk, plane = survey.first, survey.planes[0]
    if risk.batch_norm != "running" or survey.probes:  # probes differentiate what they find, layer by layer
        return False
    with risk.prepared(), torch.no_grad(), weights_restored(space := plane.space(risk.model)) as base:
        if not foldable(risk.model):
            return False
        plane.mover(risk.model, space, base)(grid.coordinates(0))  # norms at their first weights may change nothing
        batch = next(iter(risk.batches()))
        try:
            plain = risk.measure(batch)
            with folded(risk.model):
                found = risk.measure(batch)
        except Exception:  # a point may fail, and what is measured may ask for gradients or copies
            return False
    return all(_alike(one, other) for name in plain for one, other in zip(plain[name], found[name], strict=True))


def _alike(one: Tensor | float | None, other: Tensor | float | None) -> bool:
    """Tell whether sums over finite samples agree, of which there must be some."""
    if not isinstance(one, Tensor) or not isinstance(other, Tensor):
        return one == other
    kept = one.isfinite()
    same = torch.equal(kept, other.isfinite()) and bool(kept.any())
    return same and torch.allclose(one[kept].double().sum(), other[kept].double().sum(), rtol=1e-5, atol=0.0)


def _numbers(risk: EmpiricalRisk) -> int:
    """Return how many numbers a sample has; more than any limit where inputs are no tensors."""
    batch = next(iter(risk.batches()))
    return batch.input.numel() // batch.size if isinstance(batch.input, torch.Tensor) else sys.maxsize


def _race(risk: EmpiricalRisk, candidates: Sequence[ComputeSettings]) -> dict[ComputeSettings, float]:
    """Return seconds per sample of candidates: first of layouts, at one batch size."""
    # Then of sizes in the best layout, and of the norms by themselves.
    # Candidates are timed turn by turn, so that other load on the machine hits all alike.
    times: dict[ComputeSettings, float] = {}

    def measure(kernels: Iterable[ComputeSettings]) -> None:
        for kernel in kernels:
            times[kernel] = min(times.get(kernel, math.inf), _seconds(risk, kernel))

    usual = min(candidates, key=lambda kernel: abs((kernel.batch_size or 0) - _SAMPLES)).batch_size
    first = [kernel for kernel in candidates if (kernel.batch_size, kernel.folded) == (usual, candidates[-1].folded)]
    for _ in range(3):  # the first also does what is done once
        measure(first)
    ranked = sorted(first, key=times.__getitem__)
    best = {kernel.precision: kernel for kernel in reversed(ranked)}
    if ranked[0].precision == "float32":
        best.pop("bfloat16", None)  # it would have to be clearly faster
    rivals = [replace(kernel, batch_size=other.batch_size) for kernel in best.values() for other in candidates]
    rivals += [replace(kernel, folded=False) for kernel in best.values()]
    rivals = list(dict.fromkeys(kernel for kernel in rivals if kernel in candidates))
    measure(kernel for kernel in rivals if kernel not in first)
    for precision in best:
        some = [kernel for kernel in rivals if kernel.precision == precision]
        for kept in (3, 2):
            measure(sorted(some, key=times.__getitem__)[:kept])
    return times


@torch.no_grad()
def _seconds(risk: EmpiricalRisk, kernel: ComputeSettings) -> float:
    """Return what a sample takes with a kernel, in one look."""
    with risk.prepared(), kernel.applied(risk.model) as renew:
        batches: list[Batch] = []
        for batch in rebatched(risk.batches(), kernel.batch_size, kernel.memory_format):
            batches.append(batch)
            if sum(b.size for b in batches) >= _SAMPLES:
                break
        _wait(risk.device)
        start, tally = time.perf_counter(), Tally()
        renew()
        for batch in batches:
            with computing(risk.device, kernel.precision):
                tally.add(risk.measure(batch))
        tally.moments()
        _wait(risk.device)
        return (time.perf_counter() - start) / sum(batch.size for batch in batches)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _spread(task: SurfaceTask, grid: Grid) -> dict[int, Row]:
    """Return the rows, by flat number, of points spread over the grid, the center among them."""
    axes = [levels(n)[min(1, len(levels(n)) - 1)] for n in grid.shape]
    spread = np.ravel_multi_index(np.array(list(product(*axes))).T, grid.shape)
    indices = sorted({*spread.tolist(), grid.center()})
    with task.setup() as place:
        return {index: task.measure(place, [Point(grid.coordinates(index))])[0] for index in indices}


def _losses(rows: Mapping[int, Row]) -> NDArray[np.float64]:
    return np.array([np.atleast_1d(np.asarray(row.values["loss"], dtype=np.float64)) for row in rows.values()])


def _error(true: NDArray[np.float64], other: NDArray[np.float64], tolerance: Tolerance) -> dict[str, float]:
    """Return how far other losses are from the true ones, both of shape [points, splits]."""
    finite = np.isfinite(true) & np.isfinite(other)
    same = (np.isfinite(true) == np.isfinite(other)).all()
    if not same or not finite.any():
        return {"in_units_of_tolerance": float("inf"), "of_range": float("inf"), "of_value": float("inf")}
    span = float(np.ptp(true[finite])) or 1.0
    error = np.abs(other - true)[finite]
    return {
        "in_units_of_tolerance": float(
            too_far(error, true[finite], span, tolerance.floor * np.abs(true[finite]).min(), tolerance).max()
        ),
        "of_range": float(error.max() / span),
        "of_value": float((error / np.maximum(np.abs(true[finite]), 1e-3 * span)).max()),
        "points": len(true),
    }
