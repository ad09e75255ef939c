"""Hooks that measure under every trainer: sharpness after epochs, and a loss surface of the trained model."""

from __future__ import annotations

import math
from typing import Any

from torch.utils.data import DataLoader

from lowland import curvature, landscape
from lowland.core.contexts import BatchNormMode
from lowland.core.errors import InputError
from lowland.core.loaders import fixed_batches
from lowland.core.params import ParameterSpace
from lowland.core.risk import EmpiricalRisk
from lowland.core.types import as_batch
from lowland.data import TensorData
from lowland.training import FitState, Hook
from lowland.training.evaluation import plain_loss

__all__ = ["SharpnessLog", "SurfaceAtEnd"]


class SharpnessLog(Hook):
    """Adds SAM's one-step sharpness to the numbers of an epoch, with what it has to be read beside.

    Loss, accuracy, sharpness and weight norm are measured on the same fixed training samples in evaluation mode: the
    curvature of cross entropy vanishes as a network memorizes, so that sharpness alone says nothing.

    Args:
        rho: Radius. Default 0.05 (Foret et al. 2021, for CIFAR).
        samples: Training samples that are measured; fewer if there are fewer. Default 512.
        every_epochs: Epochs between measurements. Default 1.
        batch_norm: ``"running"`` statistics (default) or the ``"batch"`` statistics of the samples.
        seed: Seed of the subset. Default 0.

    Raises:
        InputError: If an argument is out of range.

    Example:
        >>> from lowland import data, models, training
        >>> from torch import nn, optim
        >>> model = models.create("resnet8", width=4, channels=1, seed=0)
        >>> result = training.fit(
        ...     model, optim.SGD(model.parameters(), lr=0.1), nn.CrossEntropyLoss(), data.load("digits", train_size=64),
        ...     epochs=1, hooks=[SharpnessLog(samples=32)],
        ... )
        >>> sorted(name for name in result.rows[0] if name.startswith("sharpness"))
        ['sharpness', 'sharpness_train_accuracy', 'sharpness_train_loss', 'sharpness_weight_norm']
    """

    def __init__(
        self,
        *,
        rho: float = 0.05,
        samples: int = 512,
        every_epochs: int = 1,
        batch_norm: BatchNormMode = "running",
        seed: int = 0,
    ) -> None:
        if rho <= 0:
            raise InputError("rho", "must be positive", rho)
        for name, value in (("samples", samples), ("every_epochs", every_epochs)):
            if value < 1:
                raise InputError(name, "must be at least 1", value)
        if batch_norm not in ("running", "batch"):
            raise InputError("batch_norm", 'must be "running" or "batch"', batch_norm)
        self.rho, self.samples, self.every_epochs, self.seed = rho, samples, every_epochs, seed
        self.batch_norm: BatchNormMode = batch_norm

    def on_epoch_end(self, run: FitState) -> None:
        """Measure if it is this epoch's turn."""
        if run.rank != 0 or run.epoch % self.every_epochs:
            return
        risk = training_risk(run, samples=self.samples, seed=self.seed, batch_norm=self.batch_norm)
        sharpness = curvature.sam_sharpness(risk, rho=self.rho)
        measured = risk.evaluate()
        accuracy = measured["accuracy"].value if "accuracy" in measured else math.nan
        run.row.update(
            sharpness=sharpness.value,
            sharpness_train_loss=sharpness.loss,
            sharpness_train_accuracy=accuracy,
            sharpness_weight_norm=ParameterSpace(risk.model).norm(),
        )


class SurfaceAtEnd(Hook):
    """Writes the filter-normalized loss surface around the trained weights, as ``surfaces/NAME.zarr`` of the folder.

    It is that of `lowland.landscape.evaluate` on a random plane (Li et al. 2018, section 4); `lowland.results.open`
    reads it. Written again, it goes on where it was cut off.

    Args:
        points: Points along each axis. Default 21.
        extent: Half width, in units of the normalized directions. Default 1.
        samples: Training samples that are measured; fewer if there are fewer. Default 1000.
        name: Name of the store. Default ``"random"``.
        batch_norm: ``"running"`` statistics (default) or the ``"batch"`` statistics of the samples.
        engine: Where points are computed. Default ``"serial"``.
        seed: Seed of directions and samples. Default 0.

    Raises:
        InputError: If an argument is out of range.

    Example:
        >>> import pathlib, tempfile
        >>> from lowland import data, models, results, training
        >>> from torch import nn, optim
        >>> folder = pathlib.Path(tempfile.mkdtemp()) / "run"
        >>> model = models.create("resnet8", width=4, channels=1, seed=0)
        >>> result = training.fit(
        ...     model, optim.SGD(model.parameters(), lr=0.1), nn.CrossEntropyLoss(), data.load("digits", train_size=64),
        ...     epochs=1, folder=folder, hooks=[SurfaceAtEnd(points=3, samples=32)],
        ... )
        >>> results.open(folder / "surfaces" / "random.zarr").loss.shape
        (3, 3)
    """

    def __init__(
        self,
        *,
        points: int = 21,
        extent: float = 1.0,
        samples: int = 1000,
        name: str = "random",
        batch_norm: BatchNormMode = "running",
        engine: str = "serial",
        seed: int = 0,
    ) -> None:
        if samples < 1:
            raise InputError("samples", "must be at least 1", samples)
        if not name or "/" in name:
            raise InputError("name", "must be the name of a store, without slashes", name)
        self.grid = landscape.grid(points, points, extent=extent)
        self.samples, self.name, self.engine, self.seed = samples, name, engine, seed
        self.batch_norm: BatchNormMode = batch_norm

    def on_fit_start(self, run: FitState) -> None:
        """Check that there is a folder to write to, before anything is trained."""
        if run.folder is None:
            raise InputError("folder", "must be given for a surface at the end", None)

    def on_fit_end(self, run: FitState) -> None:
        """Write the surface."""
        if run.rank != 0 or run.folder is None:
            return
        risk = training_risk(run, samples=self.samples, seed=self.seed, batch_norm=self.batch_norm)
        plane = landscape.random_plane(risk.model, self.seed)
        place = run.folder / "surfaces" / f"{self.name}.zarr"
        place.parent.mkdir(exist_ok=True)
        landscape.evaluate(risk, plane, self.grid, engine=self.engine, store=place)


def training_risk(run: FitState, *, samples: int, seed: int, batch_norm: BatchNormMode) -> EmpiricalRisk:
    """Return the risk of a run's plain criterion on a fixed subset of its training data."""
    train: Any = run.data.train
    if run.loss is None:
        raise InputError(
            "loss", "must be known to survey the model", None, "pass the criterion on (output, target) as loss=..."
        )
    batches: Any = train
    if isinstance(train, DataLoader):
        batches = fixed_batches(train, None, seed, whole=True)  # whatever part of it this process trains on
    else:
        batches = list(train.batches(_BATCH) if isinstance(train, TensorData) else train)
    data: Any = train.dataset if isinstance(train, DataLoader) else None
    count = sum(as_batch(raw).size for raw in batches) if data is None else len(data)
    return EmpiricalRisk(
        run.model, plain_loss(run.loss), batches, samples=min(samples, count), seed=seed, batch_norm=batch_norm
    )


_BATCH = 128
"""Samples per batch of resident data."""
