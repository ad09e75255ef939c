"""The command that films the landscape along training."""

from __future__ import annotations

import importlib.util
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Final

from lowland.core.errors import check_positive, optional_import, require
from lowland.core.names import check_engine
from lowland.core.pace import OnEvent
from lowland.core.settings import RiskSpec
from lowland.workflows import measured
from lowland.workflows.checks import check_name
from lowland.workflows.specs import SubjectSpec
from lowland.workflows.surveys import snapshots_of

if TYPE_CHECKING:
    import xarray as xr

_ENDINGS: Final = (".gif", ".mp4", ".html")
_AT_THE_END: Final = RiskSpec(weights="last")


def film(
    subject: SubjectSpec | str | PathLike[str],
    *,
    checkpoints: str | None = None,
    frames: int = 50,
    points: tuple[int, int] = (51, 51),
    refine: bool = True,
    risk: RiskSpec = _AT_THE_END,
    name: str = "film",
    output: str | None = None,
    engine: str = "serial",
    verify: bool = True,
    threads: int | None = None,
    on_event: OnEvent | None = None,
    progress: bool = False,
) -> tuple[xr.Dataset, Path, Path]:
    """Film the landscape along training: a frame per snapshot, on the plane of the path and one scale.

    Args:
        subject: Whose path; a run, or its folder, which must hold snapshots.
        checkpoints: The path of a model that is no run, as for trajectory.
        frames: Most frames; of more snapshots so many are taken, evenly.
        points: Points along x and along y of each frame, such as 51 or 51x31.
        refine: Measure only as many points of each frame as the tolerance asks for, starting from its neighbors; false
            measures all.
        risk: What is measured; running batch-norm statistics are those of each snapshot.
        name: Name of the result; it is written to FOLDER/surfaces/NAME.zarr, and an interrupted film goes on.
        output: File of the film: .gif, .mp4 (by the extra film) or .html; none writes FOLDER/figures/NAME.gif.
        engine: Who computes: serial, processes:N, ray or ray://HOST:PORT.
        verify: Measure two points of a stored film again before it goes on or is read back.
        threads: Threads of torch (threads); none leaves torch's own number.
        on_event: Receives the progress.
        progress: Show a bar, in a terminal or a notebook.

    Returns:
        The film, where it is stored, and the file that shows it.

    Raises:
        InputError: If an argument breaks a rule; nothing is written.

    Example:
        >>> film("runs/none")
        Traceback (most recent call last):
        lowland.core.errors.InputError: `run` must be the folder of a run (got 'runs/none'); make one with `lowland fit`
    """
    check_positive(points=min(points), threads=threads)
    require(frames >= 2, "frames", "must be at least 2", frames)
    check_engine(engine)
    check_name(name)
    _check_output(output)
    place, risk, snapshots = snapshots_of(SubjectSpec.of(subject), risk, checkpoints)
    path = place.surface_path(name)
    target = place.folder / "figures" / f"{name}.gif" if output is None else Path(output)
    from lowland import landscape, viz

    with measured.threads_of_torch(threads):
        chosen = measured.risk_of(place, risk)
        plane = landscape.pca_plane(chosen.model, snapshots)
        walked = landscape.project_trajectory(chosen.model, snapshots, plane, walks=1)
        found = landscape.film(
            chosen,
            snapshots,
            landscape.grid_around(walked, *points),
            plane=plane,
            frames=frames,
            refined=landscape.Tolerance() if refine else None,
            engine=engine,
            store=path,
            verify=verify,
            on_event=on_event,
            progress=progress,
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    viz.export({place.name: found}, target, "film")
    return measured.labeled(found, place, risk, path, "path"), path, target


def _check_output(output: str | None) -> None:
    if output is None:
        return
    target = Path(output)
    require(target.suffix.lower() in _ENDINGS, "output", f"must end in one of {', '.join(_ENDINGS)}", output)
    require(target.parent.is_dir(), "output", "must lie in a folder that exists", str(target.parent))
    if target.suffix.lower() == ".mp4" and importlib.util.find_spec("imageio_ffmpeg") is None:
        optional_import("imageio_ffmpeg", extra="film", needed_for="a film as .mp4")
