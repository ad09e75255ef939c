"""The commands that measure trained weights: a function each, whose arguments are the flags and the keys of YAML files.

Everything that needs no torch is checked first, and torch is imported only then.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

from lowland.core.errors import InputError
from lowland.workflows.checks import check_engine, check_name, check_positive, check_run
from lowland.workflows.measured import (
    measured_risk,
    model_of,
    opened,
    record_of,
    risk_of,
    stored_result,
    threads_of_torch,
)
from lowland.workflows.specs import RiskSpec, SubjectSpec

if TYPE_CHECKING:
    import xarray as xr
    from torch import nn

    from lowland.engine import Event
    from lowland.landscape import Plane
    from lowland.results import Run

OnEvent: TypeAlias = "Callable[[Event], None]"

_AT_THE_END = RiskSpec(weights="last", batch_norm="recalibrated")
"""The path ends at the last weights; snapshots keep no batch-norm statistics, so they are made anew at every point."""


def surface(
    subject: SubjectSpec | str | Path,
    *,
    name: str = "plane",
    risk: RiskSpec = RiskSpec(),
    points: tuple[int, int] = (51, 51),
    extent: float = 1.0,
    seed: int = 0,
    normalization: Literal["filter", "layer", "weight", "none"] = "filter",
    splits: list[str] | None = None,
    probes: list[str] | None = None,
    refine: bool = False,
    precision: Literal["float32", "bfloat16", "auto"] = "float32",
    engine: str = "serial",
    threads: int | None = None,
    on_event: OnEvent | None = None,
) -> tuple[xr.Dataset, Path]:
    """Survey the loss on a random filter-normalized plane around the weights of a run, or of any model.

    An interrupted survey goes on.

    Args:
        subject: Whose weights; a path is the folder of a run.
        name: Name of the surface; it is written to FOLDER/surfaces/NAME.zarr, and an interrupted survey goes on.
        risk: What is measured.
        points: Points along x and along y, such as 51 or 51x31.
        extent: Half width of the plane (units of the normalized directions).
        seed: Seed of the directions.
        normalization: filter, layer, weight or none.
        splits: Parts of the data that are measured; none takes the risk's.
        probes: What is measured beyond loss and accuracy: gradient (its norm), convexity (both Hessian ends), or
            module:callable that makes a lowland.landscape.Probe.
        refine: Measure only as many points as the tolerance asks for, interpolate the rest and check it.
        precision: float32, bfloat16, or auto (bfloat16 where it is faster and exact enough).
        engine: Who computes: serial, processes:N, ray or ray://HOST:PORT.
        threads: Threads of torch (threads); none leaves torch's own number.
        on_event: Receives the progress.

    Returns:
        The surface, and where it is stored.

    Raises:
        InputError: If an argument breaks a rule; nothing is written.

    Example:
        >>> surface("runs/none")
        Traceback (most recent call last):
        lowland.core.errors.InputError: `run` must be the folder of a run (got 'runs/none'); make one with `lowland fit`
    """
    check_positive(points=min(points), extent=extent, threads=threads)
    check_name(name)
    check_engine(engine)
    place = opened(subject)
    from lowland import landscape
    from lowland.workflows.build import build_probes

    path = place.surface_path(name)
    with threads_of_torch(threads):
        measured = measured_risk(place, risk, splits)
        plane = landscape.random_plane(model_of(measured), seed, normalization=normalization)
        found = landscape.evaluate(
            measured,
            plane,
            landscape.grid(*points, extent=extent),
            engine=engine,
            store=path,
            probes=build_probes(probes or ()),
            refined=landscape.Tolerance() if refine else None,
            precision=precision,
            on_event=on_event,
        )
    return found, path


def line(
    subject: SubjectSpec | str | Path,
    *,
    other: str | None = None,
    match: bool = False,
    name: str = "line",
    risk: RiskSpec = RiskSpec(),
    splits: list[str] | None = None,
    points: int = 51,
    start: float = -0.5,
    stop: float = 1.5,
    directions: int = 1,
    seed: int = 0,
    normalization: Literal["filter", "layer", "weight", "none"] = "filter",
    engine: str = "serial",
    threads: int | None = None,
    on_event: OnEvent | None = None,
) -> tuple[xr.Dataset, Path]:
    """Survey the loss on a line: in random directions from the weights of a run or any model, or to other weights.

    Args:
        subject: Whose weights; a path is the folder of a run.
        other: Folder of the run at 1, or the other checkpoint of the model; none takes random filter-normalized
            directions instead.
        match: Reorder the hidden units of the other one first, so that they resemble the first one's.
        name: Name of the result; it is written to FOLDER/surfaces/NAME.zarr, and an interrupted survey goes on.
        risk: What is measured.
        splits: Parts of the data that are measured; none takes the risk's.
        points: Points on the line.
        start: First coordinate (fraction of the way, or units of the normalized direction).
        stop: Last coordinate.
        directions: Random directions, for a band over them; 1 with another run.
        seed: Seed of the first direction; the others follow.
        normalization: filter, layer, weight or none.
        engine: Who computes: serial, processes:N, ray or ray://HOST:PORT.
        threads: Threads of torch (threads); none leaves torch's own number.
        on_event: Receives the progress.

    Returns:
        The line, and where it is stored.

    Raises:
        InputError: If an argument breaks a rule; nothing is written.

    Example:
        >>> line("runs/sam", start=1.0, stop=0.0)
        Traceback (most recent call last):
        lowland.core.errors.InputError: `start, stop` must be in ascending order (got (1.0, 0.0))
    """
    check_positive(points=points, directions=directions, threads=threads)
    check_name(name)
    check_engine(engine)
    if not start < stop:
        raise InputError("start, stop", "must be in ascending order", (start, stop))
    if match and other is None:
        raise InputError("match", "needs another run", match, "give --other")
    if other is not None and directions != 1:
        raise InputError("directions", "must be 1 between two runs", directions)
    place = opened(subject)
    if other is not None and SubjectSpec.of(subject).run is not None:
        check_run(other)
    from lowland import landscape

    path = place.surface_path(name)
    with threads_of_torch(threads):
        measured = measured_risk(place, risk, splits)
        if other is None:
            seeds = range(seed, seed + directions)
            lines = [landscape.random_line(model_of(measured), s, normalization=normalization) for s in seeds]
        else:
            lines = [_line_to(place, model_of(measured), other, match, seed, risk)]
        grid = landscape.grid(points, extent=(start, stop))
        found = landscape.evaluate(measured, lines, grid, engine=engine, store=path, on_event=on_event)
    return found, path


def _line_to(place: Run, model: nn.Module, other: str, match: bool, seed: int, risk: RiskSpec) -> Plane:
    from lowland import landscape

    end = place.source.other(other, risk.weights)
    if match:
        example = next(iter(risk_of(place, risk).batches()))
        end = landscape.match_weights(model, end, example, seed=seed).model
    return landscape.line_between(model, end, move_statistics=risk.batch_norm == "running")


def trajectory(
    run: str,
    *,
    risk: RiskSpec = _AT_THE_END,
    anchor: Literal["end", "mean"] = "end",
    losses: bool = True,
    plane: bool = True,
    points: tuple[int, int] = (25, 25),
    threads: int | None = None,
    on_event: OnEvent | None = None,
) -> tuple[xr.Dataset, Path]:
    """Project the training path of a run on its principal directions, beside a random walk's, into RUN/trajectory.zarr.

    Args:
        run: Folder of the run; it must hold snapshots.
        risk: What is measured at every snapshot and at its projection.
        anchor: Where the directions start: end (as in the paper) or mean.
        losses: Measure the true loss of every snapshot and the loss of its projection beside it.
        plane: Also survey the loss on the plane of the path.
        points: Points along x and along y of that plane, such as 25 or 25x15.
        threads: Threads of torch (threads); none leaves torch's own number.
        on_event: Receives the progress.

    Returns:
        The path; a result of the same arguments is read back. And where it is stored.

    Raises:
        InputError: If an argument breaks a rule; nothing is written.

    Example:
        >>> trajectory("runs/none")
        Traceback (most recent call last):
        lowland.core.errors.InputError: `run` must be the folder of a run (got 'runs/none'); make one with `lowland fit`
    """
    record = record_of(locals())
    check_positive(points=min(points), threads=threads)
    from lowland.results import Run

    snapshots = Run(check_run(run)).snapshots
    if snapshots is None:
        raise InputError("run", "must hold snapshots", run, "train it with --snapshots_every_epochs 1")
    place = opened(run)
    path = place.trajectory_path
    found = stored_result(path, trajectory, record)
    from lowland import landscape, results

    with threads_of_torch(threads):
        measured = risk_of(place, risk)
        anchored = anchor == "end"
        if found is not None and not plane:
            return found, path
        directions = landscape.pca_plane(measured.model, snapshots, anchored=anchored)
        if found is None:
            found = landscape.project_trajectory(
                measured.model, snapshots, directions, anchored=anchored, risk=measured if losses else None
            )
            found.attrs["spec"] = record
            results.save(found, path)
        if plane:
            grid = landscape.grid_around(found, *points)
            landscape.evaluate(measured, directions, grid, store=place.surface_path("trajectory"), on_event=on_event)
    return found, path


def curvature(
    subject: SubjectSpec | str | Path,
    *,
    name: str = "hessian",
    risk: RiskSpec = RiskSpec(),
    max_products: int = 80,
    trace_products: int = 30,
    directions: int = 32,
    rho: float = 0.05,
    top: int = 0,
    density_probes: int = 0,
    layer_probes: int = 0,
    sharpness: bool = False,
    seed: int = 0,
    threads: int | None = None,
    on_event: OnEvent | None = None,
) -> tuple[xr.Dataset, Path]:
    """Measure both ends of the Hessian's spectrum, traces and sharpness at the weights of a run, or of any model.

    Args:
        subject: Whose weights; a path is the folder of a run.
        name: Name of the result; it is written to FOLDER/curvature/NAME.zarr.
        risk: What is measured.
        max_products: Most Hessian-vector products of the Krylov run (products).
        trace_products: Products of the trace (products).
        directions: Random filter-normalized directions of the filter-weighted trace (directions).
        rho: Radius of the SAM sharpness (weight units).
        top: Also this many of the largest eigenvalues (eigenvalues).
        density_probes: Also the spectral density, from this many start vectors of 40 products (vectors).
        layer_probes: Also the trace of every tensor, from this many probes (vectors).
        sharpness: Also average-case and worst-case sharpness, plain and adaptive, by the standard protocol.
        seed: Seed of start vector and probes.
        threads: Threads of torch (threads); none leaves torch's own number.
        on_event: Receives the progress.

    Returns:
        The result; one of the same arguments is read back. And where it is stored.

    Raises:
        InputError: If an argument breaks a rule; nothing is written.

    Example:
        >>> curvature("runs/sam", rho=-1.0)
        Traceback (most recent call last):
        lowland.core.errors.InputError: `rho` must be positive (got -1.0)
    """
    record = record_of(locals())
    check_positive(max_products=max_products, trace_products=trace_products, directions=directions)
    check_positive(rho=rho, threads=threads)
    for argument, value in {"top": top, "density_probes": density_probes, "layer_probes": layer_probes}.items():
        if value < 0:
            raise InputError(argument, "must not be negative", value)
    check_name(name)
    place = opened(subject)
    path = place.curvature_path(name)
    found = stored_result(path, curvature, record)
    if found is not None:
        return found, path
    from lowland import results
    from lowland.curvature import summarize
    from lowland.workflows.events import Ticker

    # the ends rarely need all their products, so that the total is an upper bound
    ticker = Ticker(on_event, max_products + trace_products + directions)
    with threads_of_torch(threads):
        result = summarize(
            risk_of(place, risk),
            trace_products=trace_products,
            directions=directions,
            max_products=max_products,
            rho=rho,
            top=top,
            density_probes=density_probes,
            layer_probes=layer_probes,
            sharpness=sharpness,
            seed=seed,
            on_product=ticker,
        )
    result.attrs["spec"] = record
    if risk.weights.isdigit():  # a place on the path; reports compare such results at matched loss
        result.attrs["step"] = int(risk.weights)
    results.save(result, path)
    ticker.finish()
    return result, path
