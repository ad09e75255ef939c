"""The other papers' pictures, small: curves along training and between minima, measured on scikit-learn's digits.

Each picture is a function that measures its curves, one row of values per seed or direction; they are stored as JSON
and drawn from there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import xarray as xr
from torch import nn

from lowland import curvature, data, landscape, models, training, viz
from lowland.core.schema import new_surface
from lowland.losses import LLR, Sech
from lowland.optim import SALA
from lowland.workflows import DataSpec, FitSpec, LossSpec, ModelSpec, OptimizerSpec, fit
from studies.claims.files import write_whole
from studies.figure.work import Places, made_by

__all__ = ["PICTURES", "Curves", "Small", "draw_others", "measure_others", "stored_others"]


@dataclass(frozen=True)
class Small:
    """How large these are."""

    images: int = 300  # Training images
    epochs: int = 40
    seeds: int = 3
    points: int = 61  # Of a line
    directions: int = 5
    every: int = 2  # Epochs between two points of a curve along training


@dataclass(frozen=True)
class Curves:
    """What a picture shows."""

    title: str
    x_label: str
    y_label: str
    x: list[float]
    # Name of a curve -> its values, one row per seed or direction, shown as mean and range.
    rows: dict[str, list[list[float]]] = field(default_factory=dict)
    over: str = "directions"  # What the rows of a curve are
    marks: dict[str, float] = field(default_factory=dict)  # Numbers that stand beside the picture

    def lines(self) -> dict[str, xr.Dataset]:
        """Return the curves as lines that can be drawn."""
        found = {}
        for name, rows in self.rows.items():
            labels = [str(k) for k in range(len(rows))] if len(rows) > 1 else []
            line = new_surface(self.x, metrics=[self.y_label], directions=labels)
            line[self.y_label].values[...] = np.array(rows if labels else rows[0])
            line["status"].values[...] = 1
            if labels:
                line["direction"].attrs["long_name"] = self.over
            line["x"].attrs |= {"long_name": self.x_label, "units": ""}
            found[name] = line
        return found


def _spec(size: Small, folder: Path, seed: int, **changes: Any) -> FitSpec:
    given: dict[str, Any] = {
        "model": ModelSpec(name="resnet8", options={"width": 8}),
        "data": DataSpec(name="digits", options={"train_size": size.images, "label_noise": 0.3}),
        "optimizer": OptimizerSpec(learning_rate=0.05, weight_decay=5e-4),
        "epochs": size.epochs, "batch_size": 32, "seed": seed, "threads": 1, "snapshots_every_epochs": size.every,
    }  # fmt: skip
    return FitSpec(folder=str(folder), **(given | changes))


def along_training(size: Small, folder: Path) -> dict[str, Curves]:
    """Measure SGD, SAM and SAF along their paths (Du et al. 2022, figures 1 and 4b)."""
    plain = OptimizerSpec(learning_rate=0.05, weight_decay=5e-4)
    saf = LossSpec(method="saf", options={"start": 0.1})
    arms: dict[str, dict[str, Any]] = {
        "SGD": {},
        "SAM": {"optimizer": replace(plain, method="sam")},
        "SAF": {"loss": saf},
    }
    loss = Curves("The train loss along the trajectory", "epoch", "train loss", [], over="seeds")
    sharp = Curves("SAM's sharpness along the trajectory", "epoch", "sharpness", [], over="seeds")
    for name, changes in arms.items():
        for seed in range(size.seeds):
            run = fit(_spec(size, folder / f"{name.lower()}-{seed}", seed, **changes))
            steps = run.snapshots.steps if run.snapshots is not None else []
            loss.x[:] = sharp.x[:] = [float(size.every * k) for k in range(len(steps))]
            risks = [run.risk(weights=step) for step in steps]
            loss.rows.setdefault(name, []).append([float(risk.evaluate()["loss"].value) for risk in risks])
            sharp.rows.setdefault(name, []).append([float(curvature.sam_sharpness(risk).value) for risk in risks])
    return {"saf-loss": loss, "saf-sharpness": sharp}


class _Stages(training.Hook):
    """Writes down at every synchronization how far apart the weights were, and how many periods ended in stage two."""

    def __init__(self, optimizer: SALA) -> None:
        self.optimizer, self.share, self.distance = optimizer, list[float](), list[float]()
        self.slow: list[torch.Tensor] = []

    def on_fit_start(self, run: training.FitState) -> None:
        """Note where the slow weights begin."""
        self.slow = [p.detach().clone() for p in run.model.parameters()]

    def on_step_end(self, run: training.FitState) -> None:
        """Note the distance and the share, one step before the end of a period of two."""
        if run.step % 2 == 0:
            return
        self.optimizer.eval()  # shows the slow weights
        slow = [p.detach().clone() for p in run.model.parameters()]
        self.optimizer.train()
        # with alpha = 1/2 the slow weights move as far as they are from the fast ones afterwards
        moved = [(new - old).square().sum() for new, old in zip(slow, self.slow, strict=True)]
        self.distance.append(float(torch.stack(moved).sum().sqrt()))
        self.share.append(self.optimizer.stage_two_share)
        self.slow = slow


def stages(size: Small, folder: Path) -> dict[str, Curves]:
    """Measure the distance that decides SALA's stage, and the share of stage two (Tan et al. 2024)."""
    del folder
    found = {
        "sala-distance": Curves(
            "The distance that decides SALA's stage", "step", "distance", [], over="seeds", marks={"rho": 0.2}
        ),
        "sala-share": Curves("The share of periods in stage two", "step", "share of stage two", [], over="seeds"),
    }
    for seed in range(size.seeds):
        splits = data.load("digits", train_size=size.images, label_noise=0.3)
        model = models.create("resnet8", width=8, channels=1, seed=seed)
        optimizer = SALA(torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4), rho=0.2)
        hook = _Stages(optimizer)
        training.fit(
            model, optimizer, nn.CrossEntropyLoss(), splits, epochs=size.epochs, batch_size=32, seed=seed, hooks=[hook]
        )
        for name, values in (("sala-distance", hook.distance), ("sala-share", hook.share)):
            found[name].x[:] = [2.0 * k + 1 for k in range(len(values))]
            found[name].rows.setdefault("SALA", []).append(values)
    return found


def slopes(size: Small, folder: Path) -> dict[str, Curves]:
    """Measure LLR's slope over the losses that training met (Chen et al. 2025)."""
    del folder
    splits = data.load("digits", train_size=size.images, label_noise=0.3)
    model = models.create("resnet8", width=8, channels=1, seed=0)
    criterion = LLR(nn.CrossEntropyLoss(), Sech(a=2.5, b=0.15), initial_loss=float(np.log(10)), start=5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    training.fit(model, optimizer, criterion, splits, epochs=size.epochs, batch_size=32)
    met, values, epochs = (np.array(getattr(criterion.multipliers, name)) for name in ("losses", "values", "epochs"))
    order = np.argsort(met, kind="stable")
    order = order[epochs[order] >= min(5, size.epochs - 1)]  # before, training is plain
    met, values = met[order], values[order]
    share = np.arange(1, len(met) + 1) / len(met)
    kept = np.unique(np.linspace(0, len(met) - 1, 200).astype(int))
    curves = Curves("LLR's slope over the losses that training met", "loss", "slope", met[kept].tolist())
    curves.rows["slope f'(loss)"] = [values[kept].tolist()]
    curves.rows["share of the passes at or below"] = [share[kept].tolist()]
    return {"llr-slope": curves}


def batches(size: Small, folder: Path) -> dict[str, Curves]:
    """Measure small- and large-batch minima with and without weight decay (Li et al. 2018, figures 2 and 3)."""
    found: dict[str, Curves] = {}
    for decay, words in ((0.0, "without"), (5e-3, "with")):
        optimizer = OptimizerSpec(learning_rate=0.05, weight_decay=decay)
        runs = {
            # a large batch takes few steps an epoch: both are trained until they have learned
            name: fit(
                _spec(
                    size,
                    folder / f"batch{count}-{words}-{epochs}",
                    0,
                    batch_size=count,
                    epochs=epochs,
                    optimizer=optimizer,
                    snapshots_every_epochs=None,
                )
            )
            for name, count, epochs in (("small batch", 16, size.epochs), ("large batch", size.images, 8 * size.epochs))
        }
        risks = {name: run.risk(weights="last") for name, run in runs.items()}
        small, large = (risk.model for risk in risks.values())
        line = landscape.line_between(small, large)
        grid = landscape.grid(size.points, extent=(-0.5, 1.5))
        between = landscape.evaluate(risks["small batch"], line, grid, paired=False)
        title = f"From the small batch (0) to the large batch (1), {words} weight decay"
        found[f"batch-between-{words}"] = Curves(title, "share of the way", "loss", grid.x.tolist())
        found[f"batch-between-{words}"].rows["train"] = [between["loss"].values.tolist()]
        for kind, extent, unit in (("filter", 1.0, "filter-normalized"), ("none", 0.1, "not normalized")):
            title = f"Along random directions, {unit}, {words} weight decay"
            axis = landscape.grid(size.points, extent=extent)
            curves = found[f"batch-{kind}-{words}"] = Curves(title, "direction", "loss", axis.x.tolist())
            for name, risk in risks.items():
                seeds = range(size.directions)
                planes = [landscape.random_plane(risk.model, k, normalization=kind, axes=1) for k in seeds]  # type: ignore[arg-type]
                curves.rows[name] = landscape.evaluate(risk, planes, axis, paired=False)["loss"].values.tolist()
                norm = torch.stack([p.detach().norm() for p in risk.model.parameters()]).norm()
                curves.marks[f"norm of the weights, {name}"] = float(norm)
                curves.marks[f"test accuracy, {name}"] = float(runs[name].result["test"]["accuracy"])
    return found


PICTURES: Final[Mapping[str, Callable[[Small, Path], dict[str, Curves]]]] = {
    "along training": along_training,
    "stages": stages,
    "slopes": slopes,
    "batches": batches,
}
"""Group of pictures -> the function that measures it."""


def _store(places: Places) -> Path:
    return places.store / "others"


def stored_others(places: Places) -> dict[str, Curves]:
    """Return the stored curves by name."""
    found: dict[str, Curves] = {}
    for path in sorted(_store(places).glob("*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        found |= {name: Curves(**curves) for name, curves in content["pictures"].items()}
    return found


def measure_others(places: Places, size: Small = Small()) -> None:
    """Measure what is not stored."""
    for name, measure in PICTURES.items():
        path = _store(places) / f"{name.replace(' ', '-')}.json"
        if not path.is_file():
            pictures = {key: vars(curves) for key, curves in measure(size, places.folder / "others").items()}
            content = {"size": vars(size), "pictures": pictures, **made_by()}
            write_whole(path, json.dumps(content, indent=1) + "\n")


def draw_others(places: Places) -> list[Path]:
    """Draw what is stored."""
    written = []
    for name, curves in stored_others(places).items():
        figure = viz.line(curves.lines(), curves.y_label, title=curves.title)
        written.append(places.images / f"{name}.svg")
        places.images.mkdir(parents=True, exist_ok=True)
        figure.savefig(written[-1])
    return written
