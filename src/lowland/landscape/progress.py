"""A survey under way: hands points to workers in waves, keeps what comes back, and tells how far it is."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from lowland.core.pace import Clock, EventKind, OnEvent
from lowland.core.schema import STATUS_FAILED, STATUS_INTERPOLATED, STATUS_MEASURED
from lowland.engine.base import Result, Workers
from lowland.landscape.grid import Grid, ordered
from lowland.landscape.refine import interpolated, refine
from lowland.landscape.surface_task import Point, SurfaceTask, measure
from lowland.landscape.tolerance import Tolerance
from lowland.results.dataset import SurfaceWriter

_NEIGHBORS: Final = 8
"""Most finished pictures of a series from which the next one starts; more say nothing new."""

_Child: TypeAlias = tuple[int, int | None]
"""Number of a point in the whole survey, and of the point whose arrays it starts from."""


class SurveyRun:
    """Runs a survey into a writer."""

    def __init__(
        self,
        survey: SurfaceTask,
        grid: Grid,
        keeper: SurfaceWriter,
        workers: Workers,
        on_event: OnEvent | None,
        seconds: float,
    ) -> None:
        self._survey, self._grid, self._keeper, self._workers = survey, grid, keeper, workers
        self._warm = any(probe.warm_start for probe in survey.probes)
        self._order = ordered(grid, parents=self._warm)
        self._parents = {parent for _, parent in self._order}
        self._tried: set[int] = set()
        self._done = int(np.isin(keeper.status, [STATUS_MEASURED, STATUS_FAILED]).sum())
        self._total, self._seconds, self._started = keeper.status.size, seconds / workers.size, False
        self._refining = False
        self._clock = Clock(self._done, self._done, on_event)

    def measure(self, indices: NDArray[np.int64]) -> None:
        """Measure those points that are not yet measured, coarse to fine; failed ones once more per run."""
        wanted, status = {int(i) for i in indices} - self._tried, self._keeper.status
        groups = sorted({index // self._grid.size for index in wanted})
        todo = [child for child in self._children(groups) if child[0] in wanted]
        todo = [child for child in todo if status[child[0]] != STATUS_MEASURED]
        again = int(sum(status[index] == STATUS_FAILED for index, _ in todo))
        self._tried |= {index for index, _ in todo}
        self._done -= again
        self._clock.before -= again
        self._clock.total = math.inf if self._refining else self._done + len(todo)  # how many more is not known
        self._tell("started", guess=self._seconds * len(todo))
        for wave in _waves(todo):
            for result in self._workers.map(measure, _Points(self, wave), chunk=self._survey.kernel.chunk):
                self._keep(wave[result.index][0], result)

    def point(self, child: _Child) -> Point:
        """Return a point as it goes out, with the arrays of its parent if that was measured."""
        index, parent = child
        group, place = divmod(index, self._grid.size)
        warm = None
        if parent is not None and self._keeper.status[parent] == STATUS_MEASURED:
            warm = self._keeper.carried(parent)
        return Point(self._grid.coordinates(place), group, warm)

    def again(self, indices: Sequence[int]) -> list[Result]:
        """Measure points once more, and keep nothing."""
        parents = dict(self._children(sorted({index // self._grid.size for index in indices})))
        points = [self.point((index, parents[index])) for index in indices]
        return sorted(self._workers.map(measure, points, chunk=1), key=lambda result: result.index)

    def _keep(self, index: int, result: Result) -> None:
        wanted = self._warm and index % self._grid.size in self._parents and not result.failed
        values = {} if result.failed else result.value.values
        self._keeper.put(index, values, error=result.error, carry=result.value.warm_start if wanted else None)
        self._done += 1
        if result.failed:
            self._tell("failed", message=result.error, traceback=result.traceback)
        self._tell("progress")

    def refine(self, tolerance: Tolerance) -> None:
        """Measure as many points of each plane as the tolerance asks for, and interpolate the others."""
        kept = (STATUS_MEASURED, STATUS_INTERPOLATED)
        if "refinement" in self._keeper.dataset.attrs and np.isin(self._keeper.status, kept).all():
            return  # done: to interpolate once more would write the last bits of another processor
        self._refining, reports = True, dict[int, dict[str, Any]]()
        pictures: dict[int, NDArray[np.float64]] = {}
        series = all(plane.along is not None for plane in self._survey.planes)
        for group in between(len(self._survey.planes)) if series else range(len(self._survey.planes)):
            start = group * self._grid.size

            def losses(indices: NDArray[np.int64], start: int = start) -> NDArray[np.float64]:
                self.measure(start + indices)
                return self.values("loss", start + indices)

            near = sorted(pictures, key=lambda other, group=group: abs(other - group))[:_NEIGHBORS]  # type: ignore[misc]
            carried = [pictures[other] for other in near]
            found = refine(self._grid, tolerance, losses, carried, [1 / abs(other - group) for other in near])
            if series:
                pictures[group] = found.carried()
            reports[group] = found.report
            self._interpolate(start, found.measured, found.guessed, found.values)
        listed = [reports[group] for group in sorted(reports)]
        self._keeper.annotate({"refinement": listed[0] if len(listed) == 1 else listed})

    def finish(self) -> None:
        """Tell that everything is done; interpolated points are not counted."""
        self._tell("started", guess=0.0)
        self._total = self._done
        self._tell("done")

    def _children(self, groups: Sequence[int]) -> Iterator[_Child]:
        """Yield all points of some planes, coarse to fine, each after its parent."""
        for start in (group * self._grid.size for group in groups):
            for index, parent in self._order:
                yield start + index, None if parent is None else start + parent

    def _tell(self, kind: EventKind, **words: Any) -> None:
        if kind != "started" or not self._started:
            self._clock.tell(kind, self._done, total=self._total, **words)
        self._started = True

    def _interpolate(
        self, start: int, measured: NDArray[np.int64], guessed: NDArray[np.int64], losses: NDArray[np.float64]
    ) -> None:
        """Fill the points that were not measured; standard errors and skewness stay NaN there."""
        columns: dict[str, Any] = {"loss": losses}
        probed = {name for probe in self._survey.probes for name in probe.names}
        for name in map(str, self._keeper.dataset.data_vars):
            # numbers of probes may be codes and counts, which have no values in between: they stay NaN there
            if name not in ("loss", "status", "error", *probed) and not name.endswith(("_se", "_skew")):
                columns[name] = interpolated(self._grid, measured, self.values(name, start + measured), guessed)
        several = len(self._survey.risks) > 1
        for place, index in enumerate(guessed):
            values = {name: column[place] if several else column[place, 0] for name, column in columns.items()}
            self._keeper.put(start + int(index), values, status=STATUS_INTERPOLATED)

    def values(self, name: str, indices: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return stored values of points, shape [points, splits]; NaN where a point failed."""
        variable = self._keeper.dataset[name]
        values = variable.values[..., None]
        if "split" in variable.dims:
            values = np.moveaxis(variable.values, variable.dims.index("split"), -1)
        return np.asarray(values.reshape(self._total, -1)[indices], dtype=np.float64)


class _Points(Sequence[Point]):
    """The points of a wave, each made when it goes out, so that no arrays wait in memory."""

    def __init__(self, run: SurveyRun, wave: Sequence[_Child]) -> None:
        self._run, self._wave = run, wave

    def __len__(self) -> int:
        return len(self._wave)

    def __getitem__(self, place: Any) -> Any:
        return self._run.point(self._wave[place])


def between(count: int) -> list[int]:
    """Return places of a series from its last and first on, each between two that came before."""
    order, step = [count - 1, 0], 1 << max(count - 1, 1).bit_length()
    while step > 1:
        order += range(step // 2, count - 1, step)
        step //= 2
    return list(dict.fromkeys(order))


def _waves(children: Sequence[_Child]) -> Iterator[list[_Child]]:
    """Cut points into waves, in their order; a wave ends before a point whose parent is in it."""
    # Parents lie on coarser levels, so that waves are the grid's levels, or all points where none has a parent.
    wave: list[_Child] = []
    inside: set[int] = set()
    for index, parent in children:
        if parent in inside:
            yield wave
            wave, inside = [], set()
        wave.append((index, parent))
        inside.add(index)
    if wave:
        yield wave
