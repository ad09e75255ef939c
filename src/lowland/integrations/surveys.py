"""Hooks that measure under every trainer: sharpness after epochs, and a loss surface of the trained model."""

from __future__ import annotations

import math

from lowland import curvature, landscape
from lowland.core.contexts import BatchNormMode
from lowland.core.errors import require
from lowland.core.params import ParameterSpace
from lowland.training import FitState, Hook
from lowland.training.risks import check_survey, training_risk


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
        require(rho > 0, "rho", "must be positive", rho)
        check_survey(batch_norm, samples=samples, every_epochs=every_epochs)
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
        check_survey(batch_norm, samples=samples)
        require(name and "/" not in name, "name", "must be the name of a store, without slashes", name)
        self.grid = landscape.grid(points, points, extent=extent)
        self.samples, self.name, self.engine, self.seed = samples, name, engine, seed
        self.batch_norm: BatchNormMode = batch_norm

    def on_fit_start(self, run: FitState) -> None:
        """Check that there is a folder to write to, before anything is trained."""
        require(run.folder is not None, "folder", "must be given for a surface at the end", None)

    def on_fit_end(self, run: FitState) -> None:
        """Write the surface."""
        if run.rank != 0 or run.folder is None:
            return
        risk = training_risk(run, samples=self.samples, seed=self.seed, batch_norm=self.batch_norm)
        plane = landscape.random_plane(risk.model, self.seed)
        place = run.folder / "surfaces" / f"{self.name}.zarr"
        place.parent.mkdir(exist_ok=True)
        landscape.evaluate(risk, plane, self.grid, engine=self.engine, store=place)
