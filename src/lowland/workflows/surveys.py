"""The commands that measure trained weights: a function each, whose arguments are the flags and the keys of YAML files.

Everything that needs no torch is checked first, and torch is imported only then.
"""

from __future__ import annotations

import glob
from collections.abc import Sequence
from dataclasses import replace
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lowland.core.errors import InputError, check_positive, require
from lowland.core.names import PROBES, check_known, check_modules
from lowland.core.pace import OnEvent, shown
from lowland.core.settings import RiskSpec, SummaryOptions
from lowland.workflows import measured
from lowland.workflows.checkpoints import by_numbers, series_of
from lowland.workflows.checks import check_name
from lowland.workflows.specs import SubjectSpec, SurveyOptions

if TYPE_CHECKING:
    import numpy as np
    import xarray as xr
    from numpy.typing import NDArray
    from torch import nn

    from lowland.landscape import Grid, Plane
    from lowland.results import Run

_AT_THE_END = RiskSpec(weights="last", batch_norm="recalibrated")
"""The path ends at the last weights; snapshots keep no batch-norm statistics, so they are made anew at every point."""


def surface(
    subject: SubjectSpec | str | PathLike[str],
    survey: SurveyOptions = SurveyOptions(),
    *,
    points: tuple[int, int] = (51, 51),
    extent: float = 1.0,
    probes: list[str] | None = None,
    refine: bool = False,
    precision: Literal["float32", "bfloat16", "auto"] = "float32",
    on_event: OnEvent | None = None,
    progress: bool = False,
) -> tuple[xr.Dataset, Path]:
    """Survey the loss on a random filter-normalized plane around the weights of a run, or of any model.

    Args:
        subject: Whose weights; a run, or its folder.
        survey: How it is surveyed.
        points: Points along x and along y, such as 51 or 51x31.
        extent: Half width of the plane (units of the normalized directions).
        probes: What is measured beyond loss and accuracy (lowland list probes), such as gradient; or
            module:callable that makes a lowland.landscape.Probe.
        refine: Measure only as many points as the tolerance asks for, interpolate the rest and check it.
        precision: float32, bfloat16, or auto (bfloat16 where it is faster and exact enough).
        on_event: Receives the progress.
        progress: Show a bar, in a terminal or a notebook.

    Returns:
        The surface, and where it is stored.

    Raises:
        InputError: If an argument breaks a rule; nothing is written.

    Example:
        >>> surface("runs/none")
        Traceback (most recent call last):
        lowland.core.errors.InputError: `run` must be the folder of a run (got 'runs/none'); make one with `lowland fit`
    """
    check_positive(points=min(points), extent=extent)
    for probe in probes or ():
        check_known("probes", probe, PROBES)
        check_modules({"probes": probe})
    place = measured.opened(subject, survey.risk.weights)
    from lowland import landscape
    from lowland.workflows.build import build_probes

    with measured.threads_of_torch(survey.threads):
        risk, model = measured.surveyed(place, survey)
        plane = landscape.random_plane(model, survey.seed, normalization=survey.normalization)
        path = measured.surface_path(place, survey, "plane", plane, model)
        found = landscape.evaluate(
            risk,
            plane,
            landscape.grid(*points, extent=extent),
            engine=survey.engine,
            store=path,
            probes=build_probes(probes or ()),
            refined=landscape.Tolerance() if refine else None,
            precision=precision,
            verify=survey.verify,
            on_event=on_event,
            progress=progress,
        )
    return measured.labeled(found, place, survey.risk, path), path


def line(
    subject: SubjectSpec | str | PathLike[str],
    survey: SurveyOptions = SurveyOptions(),
    *,
    other: str | PathLike[str] | None = None,
    match: bool = False,
    points: int = 51,
    start: float | None = None,
    stop: float | None = None,
    directions: int = 1,
    on_event: OnEvent | None = None,
    progress: bool = False,
) -> tuple[xr.Dataset, Path]:
    """Survey the loss on a line: in random directions from the weights of a run or any model, or to other weights.

    Args:
        subject: Whose weights; a run, or its folder.
        survey: How it is surveyed.
        other: Folder of the run at 1, or the other checkpoint of the model; none takes random filter-normalized
            directions instead.
        match: Reorder the hidden units of the other one first, so that they resemble the first one's.
        points: Points on the line; on the way to other weights both ends of the way are added where they are none.
        start: First coordinate (fraction of the way, or units of the normalized direction); none takes -0.5 on the way
            to other weights, else -1.
        stop: Last coordinate; none takes 1.5 on the way to other weights, else 1.
        directions: Random directions, for a band over them; 1 with another run.
        on_event: Receives the progress.
        progress: Show a bar, in a terminal or a notebook.

    Returns:
        The line, and where it is stored.

    Raises:
        InputError: If an argument breaks a rule; nothing is written.

    Example:
        >>> line("runs/sam", start=1.0, stop=0.0)
        Traceback (most recent call last):
        lowland.core.errors.InputError: `start, stop` must be in ascending order (got (1.0, 0.0))
    """
    check_positive(points=points, directions=directions)
    other = None if other is None else fspath(other)
    low, high = (-1.0, 1.0) if other is None else (-0.5, 1.5)
    ends = (low if start is None else start, high if stop is None else stop)
    require(ends[0] < ends[1], "start, stop", "must be in ascending order", ends)
    require(not match or other is not None, "match", "needs another run", match, "give --other")
    require(other is None or directions == 1, "directions", "must be 1 between two runs", directions)
    spec = SubjectSpec.of(subject)
    if other is not None and spec.run is None and not Path(other).exists():
        raise InputError("other", "must be another checkpoint of the model", other)
    place = measured.opened(spec, survey.risk.weights)
    if other is not None and spec.run is not None:
        measured.check_other("other", other, survey.risk.weights)
    from lowland import landscape

    with measured.threads_of_torch(survey.threads):
        (risk, model), seed = measured.surveyed(place, survey), survey.seed
        if other is None:
            seeds = range(seed, seed + directions)
            lines = [landscape.random_line(model, s, normalization=survey.normalization) for s in seeds]
        else:
            lines = [_line_to(place, model, other, match, seed, survey.risk)]
        path = measured.surface_path(place, survey, "line", lines[0], model, other or "")
        grid = landscape.grid(points, extent=ends)
        grid = grid if other is None else _with_both_ends(grid.x)
        options: dict[str, Any] = {
            "engine": survey.engine,
            "verify": survey.verify,
            "on_event": on_event,
            "progress": progress,
        }
        found = landscape.evaluate(risk, lines, grid, store=path, **options)
    return measured.labeled(found, place, survey.risk, path), path


def _with_both_ends(x: NDArray[np.float64]) -> Grid:
    """Return a line on which both models lie, if they lie within it: a barrier is measured from their values."""
    import numpy as np

    from lowland.landscape import Grid

    for end in (0.0, 1.0):
        near = np.abs(x - end) < 1e-9 * (x[-1] - x[0])
        x = np.where(near, end, x) if near.any() else np.union1d(x, [end] if x[0] < end < x[-1] else [])
    return Grid(x)


def _line_to(place: Run, model: nn.Module, other: str, match: bool, seed: int, risk: RiskSpec) -> Plane:
    from lowland import landscape

    end = place.source.other(other, risk.weights)
    if match:
        example = next(iter(measured.risk_of(place, risk).batches()))
        end = landscape.match_weights(model, end, example, seed=seed).model
    return landscape.line_between(model, end, move_statistics=risk.batch_norm == "running")


def trajectory(
    subject: SubjectSpec | str | PathLike[str],
    *,
    checkpoints: str | None = None,
    risk: RiskSpec = _AT_THE_END,
    anchor: Literal["end", "mean"] = "end",
    losses: bool = True,
    plane: bool = True,
    points: tuple[int, int] = (25, 25),
    threads: int | None = None,
    on_event: OnEvent | None = None,
    progress: bool = False,
) -> tuple[xr.Dataset, Path]:
    """Project a training path on its principal directions, beside a random walk's, into FOLDER/trajectory.zarr.

    Args:
        subject: Whose path; a run, or its folder, which must hold snapshots.
        checkpoints: The path of a model that is no run: a pattern of files such as "ckpt/*.pt", or a folder with a
            series, in the order of the numbers in their names; without a checkpoint, the last of them is the end.
        risk: What is measured at every snapshot and at its projection.
        anchor: Where the directions start: end (as in the paper) or mean.
        losses: Measure the true loss of every snapshot and the loss of its projection beside it.
        plane: Also survey the loss on the plane of the path.
        points: Points along x and along y of that plane, such as 25 or 25x15.
        threads: Threads of torch (threads); none leaves torch's own number.
        on_event: Receives the progress.
        progress: Show a bar, in a terminal or a notebook.

    Returns:
        The path; a result of the same arguments is read back. And where it is stored.

    Raises:
        InputError: If an argument breaks a rule; nothing is written.

    Example:
        >>> trajectory("runs/none")
        Traceback (most recent call last):
        lowland.core.errors.InputError: `run` must be the folder of a run (got 'runs/none'); make one with `lowland fit`
    """
    subject, risk = _ending(SubjectSpec.of(subject), risk, checkpoints)
    record = measured.record_of(trajectory, locals())
    check_positive(points=min(points), threads=threads)
    place, risk, snapshots = snapshots_of(subject, risk, checkpoints)
    path = place.trajectory_path
    found = measured.stored_result(path, trajectory, record)
    from lowland import landscape, results

    with measured.threads_of_torch(threads):
        target = measured.risk_of(place, risk)
        anchored = anchor == "end"
        if found is not None and not plane:
            return found, path
        directions = landscape.pca_plane(target.model, snapshots, anchored=anchored)
        if found is None:
            found = landscape.project_trajectory(
                target.model, snapshots, directions, anchored=anchored, risk=target if losses else None
            )
            found.attrs["spec"] = record
            results.save(found, path)
        if plane:
            grid = landscape.grid_around(found, *points)
            shows: dict[str, Any] = {"on_event": on_event, "progress": progress}
            store = place.surface_path("trajectory")
            drawn = landscape.evaluate(target, directions, grid, store=store, **shows)
            measured.labeled(drawn, place, risk, store)
    return found, path


def snapshots_of(subject: SubjectSpec, risk: RiskSpec, checkpoints: str | None) -> tuple[Run, RiskSpec, Any]:
    """Return whose path is shown, the risk at its end, and the snapshots."""
    subject, risk = _ending(subject, risk, checkpoints)
    place = measured.opened(subject, risk.weights)
    snapshots: Any = place.snapshots if checkpoints is None else _OtherWeights(place, _files(checkpoints))
    if snapshots is None:
        raise InputError("run", "must hold snapshots", subject.run, "train it with --snapshots_every_epochs 1")
    return place, risk, snapshots


def _ending(subject: SubjectSpec, risk: RiskSpec, checkpoints: str | None) -> tuple[SubjectSpec, RiskSpec]:
    """Return whose weights lie at the end of a path."""
    if subject.run is not None:
        if checkpoints is not None:
            raise InputError("checkpoints", "is for a model of your own", checkpoints, "a run has its snapshots")
        return subject, risk
    if checkpoints is None:
        raise InputError("checkpoints", "must be given", advice='a pattern of files, such as "ckpt/*.pt"')
    files = _files(checkpoints)
    require(len(files) >= 2, "checkpoints", f"must find at least two files (it finds {len(files)})", checkpoints)
    risk = replace(risk, weights="best") if risk.weights == "last" else risk
    return replace(subject, checkpoint=subject.checkpoint or files[-1]), risk


def _files(pattern: str) -> list[str]:
    if Path(pattern).is_dir():
        return [str(path) for path in series_of(Path(pattern))]
    return sorted(glob.glob(pattern), key=by_numbers)


class _OtherWeights(Sequence[Any]):
    """A model with the weights of each of several checkpoints."""

    def __init__(self, place: Run, files: Sequence[str]) -> None:
        self._place, self._files = place, files

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, number: Any) -> Any:
        return self._place.source.other(self._files[number], "best")


def curvature(
    subject: SubjectSpec | str | PathLike[str],
    options: SummaryOptions = SummaryOptions(),
    *,
    name: str | None = None,
    along: Literal["train", "validation", "test"] | None = None,
    risk: RiskSpec = RiskSpec(),
    threads: int | None = None,
    on_event: OnEvent | None = None,
    progress: bool = False,
) -> tuple[xr.Dataset, Path]:
    """Measure both ends of the Hessian's spectrum, traces and sharpness at the weights of a run, or of any model.

    Args:
        subject: Whose weights; a run, or its folder.
        options: What is measured.
        name: Name of the result; it is written to FOLDER/curvature/NAME.zarr. None calls it hessian, and adds which
            weights where they are others.
        along: Also the relative critical sharpness: of the data measured, along the gradient of this part (train,
            validation or test); none leaves it out.
        risk: On which data.
        threads: Threads of torch (threads); none leaves torch's own number.
        on_event: Receives the progress.
        progress: Show a bar, in a terminal or a notebook.

    Returns:
        The result; one of the same arguments is read back. And where it is stored.

    Raises:
        InputError: If an argument breaks a rule; nothing is written.

    Example:
        >>> curvature("runs/none")
        Traceback (most recent call last):
        lowland.core.errors.InputError: `run` must be the folder of a run (got 'runs/none'); make one with `lowland fit`
    """
    record = measured.record_of(curvature, locals())
    check_positive(threads=threads)
    if name is not None:
        check_name(name)
    place = measured.opened(subject, risk.weights)
    path = measured.own_place(place, place.curvature_path, "hessian", name, risk.weights, curvature, record)
    found = measured.stored_result(path, curvature, record)
    if found is not None:
        return measured.labeled(found, place, risk), path
    from lowland import results
    from lowland.curvature import critical_sharpness, summarize
    from lowland.curvature.numbers import with_error
    from lowland.workflows.events import Ticker

    most = options.max_products + options.trace_products + options.directions
    with measured.threads_of_torch(threads), shown(progress, "curvature", on_event) as told:
        ticker = Ticker(told, most, bound=True)  # the ends rarely need all their products
        risks = measured.risks_of(place, risk, [risk.split, *([along] if along else [])])
        result = summarize(risks[risk.split], options, on_product=ticker)
        if along:
            relative = critical_sharpness(risks[risk.split], risks[along], max_passes=20)  # from a cold start
            title = f"critical sharpness along the gradient of {place.source.called(along)}"
            attrs = {"long_name": title, "units": "loss per squared weight", "missing": relative.missing}
            result = result.assign(with_error("relative_critical_sharpness", relative, **attrs))
        ticker.finish()
    result.attrs["spec"] = record
    if risk.weights.isdigit():  # a place on the path; reports compare such results at matched loss
        result.attrs["step"] = int(risk.weights)
    results.save(measured.labeled(result, place, risk), path)
    return result, path
