"""From a stored film to its figure: a contour per frame on one scale, with the path so far."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from lowland.core.errors import require
from lowland.core.schema import check
from lowland.results.choosing import Choice
from lowland.results.recipes import planes_of
from lowland.viz.caption import caption_of
from lowland.viz.spec import Film, Path, Scale
from lowland.viz.surfaces import View, build_contour, shared_scale

if TYPE_CHECKING:
    import xarray as xr


def is_film(surface: xr.Dataset) -> bool:
    """Return whether a surface has a frame per snapshot."""
    return "direction" in surface.dims and any("frame" in plane for plane in planes_of(surface)[:1])


def build_film(
    surface: xr.Dataset,
    metric: str = "loss",
    *,
    split: Choice = None,
    scale: Scale | None = None,
    title: str = "",
    caption: str | None = None,
) -> Film:
    """Make the spec of a film; frames that are not finished are left out."""
    check(surface, "surface")
    require(is_film(surface), "result", "must be a film", advice="measure one by `lowland film` or landscape.film")
    planes = planes_of(surface)
    steps = np.array([plane["step"] for plane in planes])
    x, y = np.array([plane["place"] for plane in planes], dtype=np.float64).T
    frames = {k: surface.isel(direction=k) for k in range(len(planes))}
    frames = {k: frame for k, frame in frames.items() if (frame["status"] != 0).all()}
    scale = scale or shared_scale(frames.values(), metric, split=split)
    text = caption_of(surface, note=_promise(surface)) if caption is None else caption
    along = "principal direction" if planes[0].get("kind") == "pca" else "direction"
    view: View = {"scale": scale, "split": split, "caption": ""}
    contours = []
    for k, frame in frames.items():
        path = Path("path", x[: k + 1], y[: k + 1], steps[: k + 1])
        view["title"] = f"{title}, step {steps[k]}".removeprefix(", ")
        contour = build_contour(frame, metric, paths=(path,), points=False, **view)
        first, second = (replace(axis, label=f"{along} {n}") for n, axis in ((1, contour.x_axis), (2, contour.y_axis)))
        contours.append(replace(contour, x_axis=first, y_axis=second))
    return Film(tuple(contours), tuple(int(steps[k]) for k in frames), title, text)


def _promise(surface: xr.Dataset) -> str:
    measured = int((surface["status"] == 1).sum())
    surfaces = measured / (surface.sizes["x"] * surface.sizes["y"])
    return (
        f"each through the weights of its step; {surface.sizes['direction']} frames from {measured} measured points, "
        f"those of {surfaces:.1f} full surfaces"
    )
