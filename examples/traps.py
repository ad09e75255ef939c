"""Draws the traps of the page "Is my figure right?": ``python examples/traps.py docs/images/traps``.

Every picture is measured, on a small network that is trained here on the digits of scikit-learn, with fixed seeds. Each
function returns one figure and takes the size of what it measures: 1 for the documentation, less to try it fast.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
import xarray as xr
from torch import nn

import lowland as ll
from lowland.core.schema import new_surface
from lowland.viz.curves import build_line
from lowland.viz.paths import build_path
from lowland.viz.spec import Axis, Curve, Figure, Line, Panels
from lowland.viz.surfaces import build_contour

LOSS = nn.CrossEntropyLoss()


def points(full: int, size: float) -> int:
    """An odd number of points, so that the center is one of them."""
    return 2 * max(2, round(full * size) // 2) + 1


@cache
def digits(noise: float = 0.0) -> ll.data.DataSplits:
    return ll.data.load("digits", train_size=300, label_noise=noise)


def batches(noise: float = 0.0) -> list[ll.Batch]:
    return list(digits(noise).train.batches(300))


def perceptron(seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def train(model: nn.Module, epochs: int, *, sam: bool = False, noise: float = 0.0, **options: object) -> nn.Module:
    optimizer: torch.optim.Optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    if sam:
        optimizer = ll.optim.SAM(optimizer, rho=0.3)
    settings = {"epochs": epochs, "batch_size": 50, "select": "last", **options}
    ll.training.fit(model, optimizer, LOSS, digits(noise), **settings)  # type: ignore[arg-type]
    return model


@cache
def _trained(seed: int, size: float) -> nn.Module:
    return train(perceptron(seed), max(2, round(15 * size)))


def trained(seed: int, size: float) -> nn.Module:
    """A trained network of one's own: whoever changes it changes a copy."""
    return copy.deepcopy(_trained(seed, size))


def survey(
    model: nn.Module, plane: ll.landscape.Plane, *axes: int, extent: object = 1.0, **options: object
) -> xr.Dataset:
    risk = ll.EmpiricalRisk(model, LOSS, batches(), **options)  # type: ignore[arg-type]
    return ll.landscape.evaluate(risk, plane, ll.landscape.grid(*axes, extent=extent), paired=False)  # type: ignore[arg-type]


def rescaled(model: nn.Module, factor: float) -> nn.Module:
    """The same function: one ReLU layer times a factor, the next one divided by it."""
    other = copy.deepcopy(model)
    assert isinstance(other, nn.Sequential)
    first, last = other[1], other[3]
    with torch.no_grad():
        first.weight.mul_(factor)
        first.bias.mul_(factor)
        last.weight.div_(factor)
    return other


def lines(found: Mapping[str, xr.Dataset], *, title: str = "", caption: str = "", log: bool | None = False) -> Line:
    """Curves by name; what their bands are is said in the caption."""
    spec = build_line(found, title=title, caption=caption, log=log)
    return replace(spec, curves=tuple(replace(curve, band="") for curve in spec.curves))


def normalization(size: float) -> Figure:
    """Along a plain Gaussian direction the same function looks sharp or flat; along a normalized one it does not."""
    model = trained(0, size)
    models = {"as trained": model, "first layer × 5, second ÷ 5": rescaled(model, 5.0)}
    panels = []
    for kind, title in (("none", "plain random direction"), ("filter", "filter-normalized")):
        extent = 0.3 if kind == "none" else 1.0
        found = {
            name: survey(m, ll.landscape.random_line(m, 1, normalization=kind), points(41, size), extent=extent)
            for name, m in models.items()
        }
        panels.append(lines(found, title=title, log=True))
    return Panels(tuple(panels), 2, caption="Two sets of weights that compute the same outputs.")


def batch_norm(size: float) -> Figure:
    """The same weights on the same line, with three kinds of batch-norm statistics."""
    model = train(ll.models.create("resnet8", width=8, channels=1, seed=0), max(1, round(8 * size)))
    line = ll.landscape.random_line(model, 0)
    grid, few = ll.landscape.grid(points(21, size), extent=0.7), list(digits().train.batches(20))
    found = {}
    for mode in ("running", "batch", "recalibrated"):
        risk = ll.EmpiricalRisk(model, LOSS, few, batch_norm=mode)
        found[f"{mode} statistics"] = ll.landscape.evaluate(risk, line, grid, paired=False)
    return lines(found, caption="ResNet-8, digits: one network, one line, 300 images in batches of 20.")


def ragged_batch(size: float) -> Figure:
    """The mean over batches of their mean losses depends on how the data are cut."""
    model, part = trained(0, size), digits().train

    def mean_of_means(network: nn.Module, batch: ll.Batch) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        each = nn.functional.cross_entropy(network(batch.input), batch.target, reduction="none")
        return {"loss": (each / batch.size, torch.full_like(each, 1 / batch.size))}

    line = ll.landscape.random_line(model, 0)
    grid = ll.landscape.grid(points(41, size))
    found = {"exact, any batching": survey(model, line, points(41, size))}
    for step, name in ((100, "100 + 100 + 100"), (149, "149 + 149 + 2")):
        naive = ll.EmpiricalRisk(model, batches=list(part.batches(step)), evaluate=mean_of_means)
        found[f"mean of means, {name}"] = ll.landscape.evaluate(naive, line, grid, paired=False)
    return lines(found, caption="300 images: a last batch of 2 weighs as much as one of 149.")


def few_samples(size: float) -> Figure:
    """Four draws of 30 images, each with its standard error, and all 300."""
    model = train(perceptron(0), max(2, round(3 * size)), noise=0.2)
    line, count = ll.landscape.random_line(model, 0), points(41, size)
    grid = ll.landscape.grid(count, extent=0.5)
    found = {}
    for seed in range(3):
        risk = ll.EmpiricalRisk(model, LOSS, batches(0.2), samples=30, seed=seed)
        found[f"30 images, draw {seed}"] = ll.landscape.evaluate(risk, line, grid, paired=False)
    risk = ll.EmpiricalRisk(model, LOSS, batches(0.2))
    found["all 300"] = ll.landscape.evaluate(risk, line, grid, paired=False)
    return lines(found, caption="Bands: one standard error of the mean over such images.")


def dropout(size: float) -> Figure:
    """A line measured with dropout left on, as in a model that was not put into evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 10)
        model = train(nn.Sequential(*layers), max(2, round(15 * size)))
        line, grid, batch = ll.landscape.random_line(model, 0), ll.landscape.grid(points(41, size)), batches()[0]
        right = survey(model, line, len(grid.x))
        direction = [axis.clone() for axis in line.axes[0].values.values()]  # type: ignore[attr-defined]
        weights = [p.detach().clone() for p in model.parameters()]
        noisy = []
        for x in grid.x:
            with torch.no_grad():
                for p, w, d in zip(model.parameters(), weights, direction, strict=True):
                    p.copy_(w + float(x) * d)
                noisy.append(float(LOSS(model.train()(batch.input), batch.target)))
    curves = Curve("evaluation mode", grid.x, right["loss"].values), Curve("training mode", grid.x, np.array(noisy))
    return Line(curves, Axis("filter-normalized direction"), Axis("loss"), "", "One network, one line, 300 images.")


def subset(size: float) -> Figure:
    """Both ends of the spectrum, measured on random subsets of the data."""
    model, rows = train(perceptron(0), max(2, round(15 * size)), noise=0.2), []
    counts = (15, 30, 60, 150, 300)
    for count in counts:
        draws = range(1 if count == 300 else 4)
        risks = [ll.EmpiricalRisk(model, LOSS, batches(0.2), samples=count, seed=seed) for seed in draws]
        ends = [ll.curvature.extreme_eigenvalues(risk) for risk in risks]
        rows.append([np.mean([end.lambda_max for end in ends]), np.mean([-end.lambda_min for end in ends])])
    values, names = np.array(rows), ("largest", "smallest, negated")
    curves = tuple(Curve(name, np.array(counts, float), values[:, k], markers=True) for k, name in enumerate(names))
    axes = Axis("images in the subset", log=True), Axis("eigenvalue", log=True)
    return Line(curves, *axes, "", "Mean over four draws of one trained network.")


def one_direction(size: float) -> Figure:
    """Single random directions of one network, and the mean over all directions that they scatter about."""
    model = trained(0, size)
    risk = ll.EmpiricalRisk(model, LOSS, batches())
    x = ll.landscape.grid(points(41, size)).x
    curves = []
    for seed in range(max(3, round(8 * size))):
        line = survey(model, ll.landscape.random_line(model, seed), len(x))
        curves.append(Curve(f"seed {seed}", x, line["loss"].values))
    spacing = x[1] - x[0]
    found = ll.curvature.picture_curvature(risk, spacing=spacing, directions=max(4, round(48 * size)))
    mean, kinks = found.value, found.kinks
    text = f"Mean curvature at the center over all directions, at spacing {spacing:g}: {mean.value:.3g} ± "
    text += f"{mean.standard_error:.2g}, of which kinks {kinks.value:.2g} ± {kinks.standard_error:.2g}; "
    text += f"single directions scatter by {100 * mean.spread / mean.value:.0f} %."
    return Line(tuple(curves), Axis("filter-normalized direction"), Axis("loss"), "", text)


def color_scale(size: float) -> Figure:
    """Two networks, each on a scale of its own, and both on one."""
    count = points(25, size)
    found = {}
    for epochs in (2, 15):
        name, model = f"{epochs} epochs", train(perceptron(0), max(2, round(epochs * size)))
        found[name] = survey(model, ll.landscape.random_plane(model, 0), count, count)
    shared = ll.viz.shared_scale(found.values())
    apart = [build_contour(s, title=f"{name}, own scale", caption="") for name, s in found.items()]
    joint = [build_contour(s, title=f"{name}, one scale", scale=shared, caption="") for name, s in found.items()]
    return Panels((*apart, *joint), 2)


def extent(size: float) -> Figure:
    """One network, one plane, three ranges."""
    model, count = trained(0, size), points(25, size)
    plane = ll.landscape.random_plane(model, 0)
    panels = []
    for reach in (0.1, 1.0, 5.0):
        surface = survey(model, plane, count, count, extent=reach)
        panels.append(build_contour(surface, title=f"± {reach:g}", caption=""))
    return Panels(tuple(panels), 3, caption="The same network and plane; only the range and its colors differ.")


def clipped(size: float) -> Figure:
    """The same surface with all of its range, and with everything above a limit in one color."""
    model, count = trained(0, size), points(25, size)
    surface = survey(model, ll.landscape.random_plane(model, 0), count, count, extent=2.0)
    low, high = float(surface["loss"].min()), float(surface["loss"].max())
    limits = ((low, high), (low, low + 0.03 * (high - low)))
    panels = [
        build_contour(surface, title=title, caption="", scale=ll.viz.shared_scale([surface], log=False, limits=limit))
        for title, limit in zip(("the whole range", "cut at 3 % of the range"), limits, strict=True)
    ]
    return Panels(tuple(panels), 2)


def random_walk(size: float) -> Figure:
    """A random walk of the weights, projected like a training path."""
    model = perceptron(0)
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    kept: list[tuple[int, dict[str, torch.Tensor]]] = [(0, start)]

    class Keep(ll.training.Hook):
        def on_epoch_end(self, run: ll.training.FitState) -> None:
            kept.append((run.epoch, {n: p.detach().clone() for n, p in run.model.named_parameters()}))

    train(model, max(4, round(25 * size)), hooks=[Keep()])
    stream, walk, place = torch.Generator().manual_seed(0), [], copy.deepcopy(start)
    for step in range(len(kept)):
        walk.append((step, copy.deepcopy(place)))
        for value in place.values():
            value.add_(0.05 * torch.randn(value.shape, generator=stream))
    end = copy.deepcopy(model)
    end.load_state_dict(walk[-1][1])
    panels = []
    for name, network, path in (("training", model, kept), ("random walk", end, walk)):
        found = ll.landscape.project_trajectory(network, path)
        share, null = float(found["variance_share"].sum()), float(found["null_share"].sum())
        title = f"{name}: {share:.0%} on two axes; a walk of such steps: {null:.0%}"
        panels.append(build_path({name: found}, None, title=title, caption=""))
    return Panels(tuple(panels), 2)


def matched_loss(size: float) -> Figure:
    """The largest eigenvalue against the train loss, along two runs."""
    curves = []
    for name, sam in (("SGD", False), ("SAM", True)):
        model, rows = perceptron(0), []

        class Measure(ll.training.Hook):
            def on_epoch_end(self, run: ll.training.FitState) -> None:
                if run.epoch % 5:
                    return
                risk = ll.EmpiricalRisk(run.model, LOSS, batches(0.2))
                ends = ll.curvature.extreme_eigenvalues(risk, tolerance=1e-2, max_products=30)
                rows.append((risk.evaluate()["loss"].value, ends.lambda_max))  # ruff: ignore[function-uses-loop-variable]

        train(model, max(10, round(150 * size)), sam=sam, noise=0.2, hooks=[Measure()])
        values = np.log10(np.array(rows))
        curves.append(Curve(name, values[:, 0], values[:, 1], markers=True))
    axes = Axis("log₁₀ train loss (training runs to the left)"), Axis("log₁₀ largest eigenvalue")
    return Line(tuple(curves), *axes, "", "Compare at one train loss, not at the two left ends.")


def rows_and_columns(size: float) -> Figure:
    """A plane of which one axis is steep: drawn right, and with x and y exchanged."""
    model, count = trained(0, size), points(25, size)
    random = ll.landscape.random_plane(model, 0).axes
    space = {name: p.detach() for name, p in model.named_parameters()}
    steep, flat = ({n: axis.values[n] * factor for n in space} for axis, factor in zip(random, (2.0, 0.7), strict=True))  # type: ignore[attr-defined]
    surface = survey(model, ll.landscape.user_plane(model, [steep, flat]), count, count)
    swapped = new_surface(surface["x"].values, surface["y"].values)
    swapped["loss"][:], swapped["status"][:] = surface["loss"].values.T, 1
    right = build_contour(surface, title="as measured: steep along x", caption="")
    wrong = build_contour(swapped, title="rows taken for columns", caption="", scale=right.scale)
    return Panels((right, wrong), 2)


class Pit(nn.Module):
    """Two weights; the loss is a bowl with a narrow pit beside the center."""

    def __init__(self) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.zeros(2, dtype=torch.float64))

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        x, y = self.place
        pit = torch.exp(-((x - 0.44) ** 2 + (y + 0.36) ** 2) / 4e-4)
        return 0.2 + x**2 + 0.6 * y**2 - 0.4 * pit + 0.0 * batch.sum()


def refinement(size: float) -> Figure:
    """A pit narrower than the distance between measured points: in the full survey and in a refined one."""
    model, count = Pit(), points(51, size)
    risk = ll.EmpiricalRisk(model, batches=[torch.zeros(1)], evaluate=lambda m, b: {"loss": m(b.input).reshape(1)})
    axes = [{"place": torch.tensor(axis, dtype=torch.float64)} for axis in ((1.0, 0.0), (0.0, 1.0))]
    plane, grid = ll.landscape.user_plane(model, axes), ll.landscape.grid(count, count)
    full = ll.landscape.evaluate(risk, plane, grid, paired=False)
    few = ll.landscape.evaluate(risk, plane, grid, paired=False, refined=ll.landscape.Tolerance(checks=30))
    share = float((few["status"] == 1).mean())
    scale = ll.viz.shared_scale([full])
    panels = (
        build_contour(full, title="every point measured", scale=scale, caption=""),
        build_contour(few, title=f"{share:.0%} measured, the rest interpolated", scale=scale, caption="", points=True),
    )
    return Panels(panels, 2)


def rescaling(size: float) -> Figure:
    """Sharpness of one function, whose first layer is multiplied by a factor and its second divided by it."""
    model = trained(0, size)
    factors = np.geomspace(0.2, 5.0, points(9, size))
    rows = []
    for factor in factors:
        risk = ll.EmpiricalRisk(rescaled(model, float(factor)), LOSS, batches())
        ends = ll.curvature.extreme_eigenvalues(risk, tolerance=1e-2)
        kinds = [ll.curvature.sam_sharpness(risk, rho=rho, adaptive=a) for rho, a in ((0.05, False), (0.5, True))]
        rows.append([ends.lambda_max, *(kind.value for kind in kinds)])
    values = np.log10(np.array(rows) / np.array(rows[len(rows) // 2]))
    names = ("largest eigenvalue", "SAM sharpness", "adaptive SAM sharpness")
    curves = tuple(Curve(name, np.log10(factors), values[:, k], markers=True) for k, name in enumerate(names))
    axes = Axis("log₁₀ factor on the first layer"), Axis("log₁₀ of the value over that at factor 1")
    return Line(curves, *axes, "", "Every point is the same function of its input.")


def barrier(size: float) -> Figure:
    """The line between two independent runs, before and after the hidden units are brought into one order."""
    model, other = trained(0, size), trained(1, size)
    matching = ll.landscape.match_weights(model, other, batches()[0])
    found = {}
    for name, second in (("as trained", other), ("units matched", matching.model)):
        found[name] = survey(model, ll.landscape.line_between(model, second), points(41, size), extent=(0, 1))
    return lines(found, caption="Matching changes no output of the second network.")


TRAPS: dict[str, Callable[[float], Figure]] = {
    "normalization": normalization,
    "batch-norm": batch_norm,
    "ragged-batch": ragged_batch,
    "few-samples": few_samples,
    "dropout": dropout,
    "one-direction": one_direction,
    "color-scale": color_scale,
    "extent": extent,
    "clipped": clipped,
    "random-walk": random_walk,
    "matched-loss": matched_loss,
    "rows-and-columns": rows_and_columns,
    "refinement": refinement,
    "rescaling": rescaling,
    "subset": subset,
    "barrier": barrier,
}


def inches(figure: Figure) -> tuple[float, float]:
    """Wide enough for the legends, and no higher than the panels."""
    if isinstance(figure, Panels):
        rows, columns = figure.shape
        return 3.5 * columns, 3.4 * rows
    return 5.6, 3.6


def draw_all(folder: Path, size: float = 1.0) -> list[Path]:
    """Write one image per trap and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    figures = {name: trap(size) for name, trap in TRAPS.items()}
    return [ll.viz.save(spec, folder / f"{name}.svg", size=inches(spec)) for name, spec in figures.items()]


if __name__ == "__main__":
    for image in draw_all(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/images/traps")):
        print(image)
