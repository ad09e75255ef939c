"""The commands that measure trained weights: a function each, whose arguments are the flags and the keys of YAML files.

Everything that needs no torch is checked first, and torch is imported only then.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from lowland.core.errors import InputError, StoreError
from lowland.workflows.checks import VERSION, check_engine, check_name, check_positive, check_run
from lowland.workflows.parse import HOOKS, from_text, to_yaml
from lowland.workflows.specs import RiskSpec, SubjectSpec

if TYPE_CHECKING:
    import xarray as xr
    from torch import nn

    from lowland.core.risk import EmpiricalRisk
    from lowland.engine import Event
    from lowland.landscape import Plane
    from lowland.results import Run

__all__ = ["curvature", "line", "surface", "threads_of_torch", "trajectory"]

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
    place = _opened(subject)
    from lowland import landscape
    from lowland.workflows.build import build_probes

    path = place.surface_path(name)
    with threads_of_torch(threads):
        measured = _measured(place, risk, splits)
        plane = landscape.random_plane(_model(measured), seed, normalization=normalization)
        found = landscape.evaluate(
            measured, plane, landscape.grid(*points, extent=extent), engine=engine, store=path,
            probes=build_probes(probes or ()), refined=landscape.Tolerance() if refine else None,
            precision=precision, on_event=on_event,
        )  # fmt: skip
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
    place = _opened(subject)
    if other is not None and SubjectSpec.of(subject).run is not None:
        check_run(other)
    from lowland import landscape

    path = place.surface_path(name)
    with threads_of_torch(threads):
        measured = _measured(place, risk, splits)
        if other is None:
            seeds = range(seed, seed + directions)
            lines = [landscape.random_line(_model(measured), s, normalization=normalization) for s in seeds]
        else:
            lines = [_line_to(place, _model(measured), other, match, seed, risk)]
        grid = landscape.grid(points, extent=(start, stop))
        found = landscape.evaluate(measured, lines, grid, engine=engine, store=path, on_event=on_event)
    return found, path


def _line_to(place: Run, model: nn.Module, other: str, match: bool, seed: int, risk: RiskSpec) -> Plane:
    from lowland import landscape

    end = place.source.other(other, risk.weights)
    if match:
        example = next(iter(_risk(place, risk).batches()))
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
    record = _record(locals())
    check_positive(points=min(points), threads=threads)
    from lowland.results import Run

    snapshots = Run(check_run(run)).snapshots
    if snapshots is None:
        raise InputError("run", "must hold snapshots", run, "train it with --snapshots_every_epochs 1")
    place = _opened(run)
    path = place.trajectory_path
    found = _stored(path, trajectory, record)
    from lowland import landscape, results

    with threads_of_torch(threads):
        measured = _risk(place, risk)
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
    record = _record(locals())
    check_positive(max_products=max_products, trace_products=trace_products, directions=directions)
    check_positive(rho=rho, threads=threads)
    for argument, value in {"top": top, "density_probes": density_probes, "layer_probes": layer_probes}.items():
        if value < 0:
            raise InputError(argument, "must not be negative", value)
    check_name(name)
    place = _opened(subject)
    path = place.curvature_path(name)
    found = _stored(path, curvature, record)
    if found is not None:
        return found, path
    from lowland import results
    from lowland.curvature import summarize
    from lowland.workflows.events import Ticker

    # the ends rarely need all their products, so that the total is an upper bound
    ticker = Ticker(on_event, max_products + trace_products + directions)
    with threads_of_torch(threads):
        result = summarize(
            _risk(place, risk), trace_products=trace_products, directions=directions, max_products=max_products,
            rho=rho, top=top, density_probes=density_probes, layer_probes=layer_probes, sharpness=sharpness,
            seed=seed, on_product=ticker,
        )  # fmt: skip
    result.attrs["spec"] = record
    if risk.weights.isdigit():  # a place on the path; reports compare such results at matched loss
        result.attrs["step"] = int(risk.weights)
    results.save(result, path)
    ticker.finish()
    return result, path


@contextmanager
def threads_of_torch(count: int | None) -> Generator[None, None, None]:
    """Let torch use a number of threads, and restore its own at the end."""
    import torch

    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _opened(subject: SubjectSpec | str | Path) -> Run:
    spec = SubjectSpec.of(subject)
    if spec.run is not None:
        check_run(spec.run)  # before anything is imported
    from lowland.workflows.sources import subject_run

    return subject_run(spec)


def _risk(place: Run, risk: RiskSpec) -> EmpiricalRisk:
    measured: EmpiricalRisk = place.risk(**asdict(risk))
    _open_folder(place)
    return measured


def _open_folder(place: Run) -> None:
    # only once the risk is there: bad input leaves no trace
    from lowland.results.folders import open_run_folder

    open_run_folder(place.folder)


def _measured(place: Run, risk: RiskSpec, splits: list[str] | None) -> EmpiricalRisk | dict[str, EmpiricalRisk]:
    if splits is None:
        return _risk(place, risk)
    measured = dict(place.risks(splits, **asdict(risk)))
    _open_folder(place)
    return measured


def _model(risk: EmpiricalRisk | dict[str, EmpiricalRisk]) -> nn.Module:
    return (next(iter(risk.values())) if isinstance(risk, dict) else risk).model


def _record(arguments: Mapping[str, Any]) -> str:
    """Return the arguments of a call as a result keeps them: the YAML that makes it again."""
    kept: dict[str, Any] = {"version": VERSION}
    for name, value in arguments.items():
        if name == "subject":
            kept |= asdict(SubjectSpec.of(value))
        elif name not in HOOKS:
            kept[name] = asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
    return to_yaml(kept)


def _stored(path: Path, command: Callable[..., Any], record: str) -> xr.Dataset | None:
    """Return the result of the same call; refuse to overwrite one of another."""
    if not path.exists():
        return None
    from lowland import results

    found = results.open(path)
    try:  # a record of before some argument was added is of the same call
        same = _what(command, str(found.attrs.get("spec", ""))) == _what(command, record)
    except InputError:
        same = False
    if not same:
        raise StoreError(
            f"{path} holds a result of another spec; remove it, or choose another --name where there is one"
        )
    return found


def _what(command: Callable[..., Any], record: str) -> dict[str, Any]:
    # a run that was moved is still the same run
    return {name: value for name, value in from_text(command, record).values.items() if name not in ("run", "folder")}
