"""A survey under way: hands points to the engine, keeps what comes back, and tells how far it is."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lowland.core.pace import Pace
from lowland.core.schema import STATUS_FAILED, STATUS_INTERPOLATED, STATUS_MEASURED
from lowland.engine.base import Engine, Event, OnEvent, Point, Row
from lowland.landscape.grid import Grid, ordered
from lowland.landscape.refine import Tolerance, interpolated, refine
from lowland.landscape.surface_task import SurfaceTask
from lowland.results.dataset import SurfaceWriter

__all__ = ["SurveyRun"]


class SurveyRun:
    """Runs a survey into a writer."""

    def __init__(
        self,
        survey: SurfaceTask,
        grid: Grid,
        keeper: SurfaceWriter,
        engine: Engine,
        on_event: OnEvent | None,
        seconds: float,
    ) -> None:
        self._survey, self._grid, self._keeper, self._engine = survey, grid, keeper, engine
        self._receive, self._seconds = on_event or (lambda event: None), seconds
        self._warm = any(probe.warm_start for probe in survey.probes)
        self._order = ordered(grid, parents=self._warm)
        self._parents = {parent for _, parent in self._order}
        self._tried: set[int] = set()
        self._done = int(np.isin(keeper.status, [STATUS_MEASURED, STATUS_FAILED]).sum())
        self._total, self._fresh = keeper.status.size, 0
        self._before, self._elapsed, self._started = 0.0, 0.0, False

    def measure(self, indices: NDArray[np.int64]) -> None:
        """Measure those points that are not yet measured, coarse to fine; failed ones once more per run."""
        points, known = self._points({int(i) for i in indices} - self._tried)
        if not points:
            return
        self._tried |= {point.index for point in points}
        self._done -= int(sum(self._keeper.status[point.index] == STATUS_FAILED for point in points))
        run = self._engine.run(
            self._survey, points, chunk=self._survey.kernel.chunk, known=known, seconds_per_point=self._seconds,
            on_event=self._tell,
        )  # fmt: skip
        with closing(run):
            for rows in run:
                for row in rows:
                    wanted = self._warm and row.index % self._grid.size in self._parents
                    self._keeper.put(row.index, row.values, error=row.error, carry=row.carry if wanted else None)
                self._done, self._fresh = self._done + len(rows), self._fresh + len(rows)
        self._before = self._elapsed

    def refine(self, tolerance: Tolerance) -> None:
        """Measure as many points of each plane as the tolerance asks for, and interpolate the others."""
        reports = []
        for group in range(len(self._survey.planes)):
            start = group * self._grid.size

            def losses(indices: NDArray[np.int64], start: int = start) -> NDArray[np.float64]:
                self.measure(start + indices)
                return self._values("loss", start + indices)

            found = refine(self._grid, tolerance, losses)
            reports.append(found.report)
            self._interpolate(start, found.measured, found.guessed, found.values)
        self._keeper.annotate({"refinement": reports[0] if len(reports) == 1 else reports})

    def finish(self) -> None:
        """Tell that everything is done."""
        rate = Pace.of(self._fresh, self._total, self._elapsed).rate
        if not self._started:
            self._receive(Event("started", self._total, self._total, 0.0, 0.0))
        self._receive(Event("done", self._total, self._total, self._elapsed, 0.0, rate))

    def _points(self, wanted: set[int]) -> tuple[list[Point], dict[int, Row]]:
        """Return the points still to be measured, each after its parent, and the rows of parents measured before."""
        status, points, known = self._keeper.status, list[Point](), dict[int, Row]()
        todo = {index for index in wanted if status[index] != STATUS_MEASURED}
        for group in range(len(self._survey.planes)):
            start = group * self._grid.size
            for index, parent in self._order:
                if start + index not in todo:
                    continue
                above = None if parent is None else start + parent
                if above is not None and above not in todo:
                    if status[above] == STATUS_MEASURED:
                        known[above] = Row(above, {}, self._keeper.carried(above))
                    else:
                        above = None
                points.append(Point(start + index, self._grid.coordinates(index), group, above))
        return points, known

    def _tell(self, event: Event) -> None:
        """Pass an engine's event on as part of the whole survey."""
        if event.kind == "done" or (event.kind == "started" and self._started):
            return
        self._started, self._elapsed = True, self._before + event.elapsed
        self._receive(replace(event, done=self._done, total=self._total, elapsed=self._elapsed))

    def _interpolate(
        self, start: int, measured: NDArray[np.int64], guessed: NDArray[np.int64], losses: NDArray[np.float64]
    ) -> None:
        """Fill the points that were not measured; standard errors and skewness stay NaN there."""
        columns: dict[str, Any] = {"loss": losses}
        probed = {name for probe in self._survey.probes for name in probe.names}
        for name in map(str, self._keeper.dataset.data_vars):
            # numbers of probes may be codes and counts, which have no values in between: they stay NaN there
            if name not in ("loss", "status", "error", *probed) and not name.endswith(("_se", "_skew")):
                columns[name] = interpolated(self._grid, measured, self._values(name, start + measured), guessed)
        several = len(self._survey.risks) > 1
        for place, index in enumerate(guessed):
            values = {name: column[place] if several else column[place, 0] for name, column in columns.items()}
            self._keeper.put(start + int(index), values, status=STATUS_INTERPOLATED)

    def _values(self, name: str, indices: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return stored values of points, shape [points, splits]; NaN where a point failed."""
        variable = self._keeper.dataset[name]
        values = variable.values[..., None]
        if "split" in variable.dims:
            values = np.moveaxis(variable.values, variable.dims.index("split"), -1)
        return np.asarray(values.reshape(self._total, -1)[indices], dtype=np.float64)
