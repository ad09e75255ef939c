"""Draws every kind of figure and writes the images of the gallery: ``python examples/gallery.py docs/images``.

The functions are made up, with known minima, so that a wrong axis or scale is seen at once; on your own results the
calls are the same (``ll.results.open("surface.zarr")`` in place of ``surface_of``).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr

import lowland as ll
from lowland.core.schema import new_surface, new_trajectory
from lowland.losses import Multipliers, Sech, slope_over_losses
from lowland.viz.curves import build_cost, build_density
from lowland.viz.surfaces import build_convexity_map


def surface_of(width: float, seed: int, points: int = 51) -> xr.Dataset:
    """A bumpy bowl: narrow for a small width."""
    axis = np.linspace(-1, 1, points)
    x, y = np.meshgrid(axis, axis, indexing="ij")
    phase = np.random.default_rng(seed).uniform(0, 6, size=(4, 3))
    bumps = sum(np.sin(3 * a * x + b) * np.cos(2 * c * y + a) for a, b, c in phase)
    recipe = {"planes": [{"kind": "test function", "arguments": {"seed": seed}}]}
    attrs = {"batch_norm": "running", "samples": 1000, "recipe": recipe}
    surface = new_surface(axis, axis, errors=["loss"], attrs=attrs)
    surface["loss"][:] = 0.02 + (x**2 + 0.6 * y**2 + 0.5 * x * y) / width + 0.05 / width * bumps * (x**2 + y**2)
    surface["loss_se"][:] = 0.01
    surface["status"][:] = 1
    return surface


def descent(learning_rate: float, momentum: float, steps: int = 60) -> xr.Dataset:
    """Gradient descent with momentum on a quadratic bowl."""
    hessian = np.array([[2.0, 0.5], [0.5, 1.2]]) / 0.3
    place, speed, path = np.array([-0.85, 0.8]), np.zeros(2), []
    for _ in range(steps):
        path.append(place)
        speed = momentum * speed - learning_rate * hessian @ place
        place = place + speed
    return new_trajectory(path, steps=np.arange(steps), variables={
        "variance_share": ("axis", [0.9, 0.1]), "null_share": ("axis", [0.61, 0.15]),
        "distance": ("snapshot", np.zeros(steps))})  # fmt: skip


def lines_of(width: float, directions: int = 5) -> xr.Dataset:
    """The bowl along several directions."""
    axis = np.linspace(-1, 1, 81)
    line = new_surface(axis, directions=[str(k) for k in range(directions)])
    for k in range(directions):
        line["loss"][k] = 0.02 + (1 + 0.25 * k) * axis**2 / width + 0.03 * np.sin(5 * axis + k) ** 2
    line["status"][:] = 1
    return line


def damaged() -> xr.Dataset:
    """A survey that is not finished, with a failed point, a NaN and an infinite loss."""
    surface = surface_of(0.3, 1, points=31)
    surface["loss"][22:] = np.nan
    surface["status"][22:] = 0
    surface["loss"][4, 5], surface["status"][4, 5] = np.nan, 3
    surface["loss"][8, 24], surface["loss"][15, 27] = np.inf, np.nan
    return surface


def convexity() -> xr.Dataset:
    """Convex inside, not convex outside, undecided between."""
    axis = np.linspace(-1, 1, 25)
    x, y = np.meshgrid(axis, axis, indexing="ij")
    result = new_surface(axis, axis, metrics=["negative_curvature"])
    lowest = 0.4 - (x - 0.1) ** 2 - 0.6 * y**2
    result["negative_curvature"][:] = np.where(np.abs(lowest) < 0.08, 0.0, -np.sign(lowest))
    result["status"][:] = 1
    return result


def ways() -> xr.Dataset:
    """Three ways between two networks."""
    t = np.linspace(0, 1, 41)
    heights = {"line": 1.2, "matched line": 0.5, "bezier curve": 0.04}
    surface = new_surface(t, directions=list(heights))
    for place, height in enumerate(heights.values()):
        surface["loss"][place] = 0.02 + height * np.sin(np.pi * t) ** 4
    surface["status"][:], surface["x"].attrs["units"] = 1, "share of the way"
    return surface


def curved() -> xr.Dataset:
    """A curve that goes round a ridge between two minima."""
    x, y, t = np.linspace(-0.3, 1.3, 61), np.linspace(-0.3, 0.9, 51), np.linspace(0, 1, 61)
    path = {"x": t.tolist(), "y": (1.1 * 2 * t * (1 - t)).tolist(), "distance": [0.0] * 61, "ends": [0.0, 1.0]}
    surface = new_surface(
        x, y, attrs={"recipe": {"planes": [{"kind": "test function", "paths": {"bezier curve": path}}]}}
    )
    across, up = np.meshgrid(x, y, indexing="ij")
    valley = 4 * (up - 2.2 * across * (1 - across)) ** 2
    ridge = 1.5 * np.exp(-(((across - 0.5) / 0.2) ** 2) - ((up + 0.1) / 0.35) ** 2)
    surface["loss"][:] = 0.02 + valley * (0.1 + 4 * across**2 * (1 - across) ** 2) + ridge
    surface["status"][:] = 1
    return surface


def pitted(points: int = 51, error: float = 0.04) -> xr.Dataset:
    """Four pits of known depth, one of them at the edge, under noise of a known standard error."""
    axis = np.linspace(-1, 1, points)
    x, y = np.meshgrid(axis, axis, indexing="ij")
    surface = new_surface(axis, axis, errors=["loss"], attrs={"samples": 1000})
    pits = [(-0.4, -0.3, 1.6), (0.5, 0.3, 1.2), (0.1, 0.7, 0.9), (-0.9, 0.95, 0.7)]
    ground = 2.0 + 0.3 * (x**2 + y**2)
    ground = ground - sum(depth * np.exp(-((x - a) ** 2 + (y - b) ** 2) / 0.08) for a, b, depth in pits)
    surface["loss"][:] = ground + error * np.random.default_rng(0).normal(size=x.shape)
    surface["loss_se"][:], surface["status"][:] = error, 1
    return surface


def moving(points: int = 51, frames: int = 13) -> xr.Dataset:
    """A bowl that deepens while a path goes down into it."""
    axis = np.linspace(-1, 1, points)
    x, y = np.meshgrid(axis, axis, indexing="ij")
    times, path = np.linspace(0, 1, frames), descent(0.05, 0.6)["coordinate"].values
    places = path[np.linspace(0, 24, frames).astype(int)]
    planes: list[dict[str, Any]] = [
        {"frame": k, "step": 50 * k, "place": place.tolist()} for k, place in enumerate(places)
    ]
    planes[0] |= {"kind": "test function"}
    steps = [str(plane["step"]) for plane in planes]
    film = new_surface(axis, axis, directions=steps, attrs={"recipe": {"planes": planes}, "samples": 1000})
    for k, t in enumerate(times):
        bowl = (x**2 + 0.6 * y**2 + 0.5 * x * y) / (0.1 + 0.3 * t)
        film["loss"][k] = (0.02 + bowl) * t + 2.3 * (1 - t) * (1 + 0.1 * x - 0.1 * y)
    film["status"][:] = 1
    return film


def slopes() -> xr.Dataset:
    """What LLR did to the losses of a run that falls from 2.3 towards 0."""
    met, reshaper = Multipliers(), Sech(a=2.5, b=0.15)
    for loss in torch.as_tensor(2.3 * np.exp(-np.linspace(0, 4, 400))):
        met.append(0, loss, reshaper.multiplier(loss, 2.3))
    return slope_over_losses(reshaper, met, 2.3)


def figures(points: int = 51) -> dict[str, Any]:
    """One figure of every kind, by name."""
    sharp, flat = surface_of(0.1, 0, points), surface_of(0.5, 0, points)
    paths = {"SGD": descent(0.04, 0.0), "SGD with momentum": descent(0.02, 0.85)}
    grid = np.linspace(-2, 30, 400)
    bulk = np.exp(-0.5 * (grid / 0.8) ** 2) + sum(3e-4 * np.exp(-0.5 * ((grid - c) / 0.4) ** 2) for c in (9, 17, 26))
    rng = np.random.default_rng(0)
    methods = [("SGD", 30, 90.1), ("SAM", 60, 92.0), ("LookSAM", 40, 91.6)]
    estimates = [ll.viz.ScatterPoint(name, x, y, (y - 0.5, y + 0.5), tuple((x, y + d) for d in rng.normal(0, 0.4, 5)))
                 for name, x, y in methods]  # fmt: skip
    return {
        "contour": ll.viz.contour(flat, title="Filled contours"),
        "contour_lines": ll.viz.contour(flat, filled=False, title="Contour lines"),
        "unfinished": ll.viz.contour(damaged(), title="A survey that is not finished"),
        "heat_map": ll.viz.heat_map(damaged(), title="One cell per point"),
        "surface": ll.viz.surface(flat, backend="matplotlib", title="A surface"),
        "compare": ll.viz.compare({"sharp": sharp, "flat": flat}, columns=2),
        "path": ll.viz.path(paths, flat, title="Two optimizers on one plane"),
        "path_alone": ll.viz.path(paths, title="The same paths alone"),
        "line": ll.viz.line({"sharp": lines_of(0.1), "flat": lines_of(0.5)}, title="Along five directions"),
        "ways": ll.viz.line(ways(), title="Ways between two networks"),
        "curve": ll.viz.contour(curved(), title="A curve between two networks"),
        "density": ll.viz.draw(build_density({"Hessian": (grid, bulk)}, eigenvalues=[9.0, 17.0, 26.0])),
        "convexity": ll.viz.draw(build_convexity_map(convexity(), title="Where the loss is convex")),
        "cost": ll.viz.draw(build_cost(estimates, title="Accuracy against cost")),
        "merge_tree": ll.viz.merge_tree(pitted(points), title="Basins"),
        "slope": ll.viz.slope(slopes(), title="LLR's slope over the losses met"),
        "solids": ll.viz.compare({"sharp": sharp, "flat": flat}, kind="surface", columns=2),
    }


def draw_all(folder: Path, points: int = 51) -> list[Path]:
    """Write one image per kind of figure and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, figure in figures(points).items():
        written.append(folder / f"{name}.svg")
        figure.savefig(written[-1])
    written.append(ll.viz.export({"film": moving(points)}, folder / "film.gif", "film"))
    return written


if __name__ == "__main__":
    for image in draw_all(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/images")):
        print(image)
