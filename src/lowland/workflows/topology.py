"""The command that counts the basins of a stored surface, and compares two."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from lowland.core.errors import InputError, require

if TYPE_CHECKING:
    import xarray as xr

    from lowland.results import Distance, MergeTree


def topology(
    surface: str,
    *,
    other: str | None = None,
    metric: str = "loss",
    split: int | str | None = None,
    direction: int | str | None = None,
    level: float = 0.95,
    estimand: Literal["population", "data set"] = "population",
    size: int | None = None,
    diagonals: bool = True,
    output: str | None = None,
) -> tuple[MergeTree, Distance | None, Path | None]:
    """Count the basins of a stored surface that its errors could not have made, without computing anything again.

    Args:
        surface: A stored surface or line, or the folder of a run with one surface.
        other: Another one; none compares with nothing.
        metric: Metric whose low values are basins.
        split: Name along split; none for the first.
        direction: Name along direction; none for the first.
        level: Chance that no basin is invented.
        estimand: population, or data set with its size: where all of it was measured there is no sampling error.
        size: Samples in the data set.
        diagonals: Points across diagonals are connected too.
        output: File for the merge tree beside the contours: .pdf, .svg, .png or .html; none draws nothing.

    Returns:
        The merge tree, the distance to the other surface, and the file.

    Raises:
        InputError: If a store is missing, or the arguments do not fit; nothing is written.

    Example:
        >>> topology("runs/none.zarr")
        Traceback (most recent call last):
        lowland.core.errors.InputError: `surface` must be a stored surface (got 'runs/none.zarr'); ...
    """
    for name, place in (("surface", surface), ("other", other)):
        if place is not None and "://" not in place and not Path(place).exists():
            raise InputError(name, "must be a stored surface", place, "lowland surface and lowland line write them")
    from lowland.results import distance, merge_tree

    found = {name: _opened(name, place) for name, place in (("surface", surface), ("other", other)) if place}
    trees = [
        merge_tree(
            one,
            metric=metric,
            level=level,
            estimand=estimand,
            size=size,
            split=split,
            direction=direction,
            neighbors=8 if diagonals else 4,
        )
        for one in found.values()
    ]
    apart = distance(*trees) if len(trees) > 1 else None
    if output is None:
        return trees[0], apart, None
    from lowland import viz
    from lowland.core.settings import FigureOptions

    options = FigureOptions(metric=metric, split=split, direction=direction)
    return trees[0], apart, viz.export({Path(surface).stem: found["surface"]}, output, "merge-tree", options=options)


def _opened(name: str, place: str) -> xr.Dataset:
    from lowland.results import Run
    from lowland.results import open as open_store
    from lowland.results.folders import is_run

    path = Path(place)
    if "://" in place or not is_run(path):
        return open_store(place)
    surfaces = Run(path).surfaces
    one = [str(path / "surfaces" / f"{entry}.zarr") for entry in surfaces]
    require(len(one) == 1, name, "must be one surface of the run", place, f"name one of: {', '.join(one) or 'none'}")
    return next(iter(surfaces.values()))
