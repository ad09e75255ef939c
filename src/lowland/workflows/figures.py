"""The command that draws stored results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lowland.core.errors import InputError, require
from lowland.core.settings import FigureOptions


def figure(
    results: list[str],
    options: FigureOptions = FigureOptions(),
    *,
    output: str = "figure.pdf",
    kind: str = "contour",
    trajectories: list[str] | None = None,
) -> Path:
    """Draw stored results in any style, without computing anything again.

    Args:
        results: Stores of surfaces, lines or curvature; several are drawn on one scale.
        options: How it looks.
        output: File to write; its ending chooses the format: .pdf, .svg, .png, .html, .vts or .vtp; of what moves
            .html, .gif or .mp4.
        kind: contour, surface, heat-map, convexity, line, density, path, animation, film or merge-tree.
        trajectories: Stores of training paths, for path and animation.

    Returns:
        The file.

    Raises:
        InputError: If a store is missing or does not fit the kind; nothing is written.

    Example:
        >>> figure(["runs/none.zarr"], output="figure.pdf")
        Traceback (most recent call last):
        lowland.core.errors.InputError: `results` must be stored results (got 'runs/none.zarr'); ...
    """
    for path in (*results, *(trajectories or ())):
        if "://" not in path and not Path(path).exists():
            raise InputError("results", "must be stored results", path, "lowland surface, line, curvature write them")
    named, paths = _names(results), _names(trajectories or ())
    from lowland import results as stored
    from lowland import viz

    drawn, walked = ({name: stored.open(path) for name, path in part.items()} for part in (named, paths))
    return viz.export(drawn, output, kind, trajectories=walked, options=options)


def _names(paths: Sequence[str]) -> dict[str, str]:
    """Name results by their run where they lie in one, so that panels can be told apart."""
    from lowland.results.run import Run

    names = []
    for path in paths:
        run = Run.of_store(path)
        names.append(run.folder.name if run.spec_path.is_file() else Path(path).absolute().stem)
    if len(set(names)) < len(names):
        names = [f"{name} {Path(path).stem}" for name, path in zip(names, paths, strict=True)]
    require(len(set(names)) >= len(names), "results", "must have different names", names)
    return dict(zip(names, paths, strict=True))
