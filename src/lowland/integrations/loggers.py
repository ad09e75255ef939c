"""Scalars and figures of a run for TensorBoard or any other logger of Lightning Fabric."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any, Protocol

from lowland import landscape, viz
from lowland.core.errors import InputError
from lowland.core.risk import EmpiricalRisk
from lowland.training import FitState, Hook
from lowland.training.evaluation import plain_loss

__all__ = ["FabricLogger", "LogTo", "line_figure"]

Draw = Callable[[FitState], Any]
"""Draws a matplotlib figure of a run at the end of an epoch."""


class FabricLogger(Protocol):
    """What Fabric's loggers have in common (`lightning.fabric.loggers`, and those of Lightning)."""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Take named numbers of one step."""


class LogTo(Hook):
    """Sends the numbers of every epoch, and figures, to a Fabric logger.

    Numbers are those of ``metrics.csv``. Figures go to the logger's own ``experiment.add_figure`` where it has one
    (TensorBoard), and else are kept as ``figures/NAME-EPOCH.png`` in the run's folder.

    Args:
        logger: Any logger with ``log_metrics(metrics, step)``.
        figures: Name -> function that draws a figure of the run, such as `line_figure`. Default none.
        every_epochs: Epochs between figures. Default 1.

    Raises:
        InputError: If the logger has no ``log_metrics``, or the number of epochs is not positive.

    Example:
        >>> class Printed:
        ...     def log_metrics(self, metrics, step=None):
        ...         print(step, sorted(metrics))
        >>> LogTo(Printed()).send({"train_loss": 0.5}, 10)
        10 ['train_loss']
    """

    def __init__(
        self, logger: FabricLogger, *, figures: Mapping[str, Draw] | None = None, every_epochs: int = 1
    ) -> None:
        if not callable(getattr(logger, "log_metrics", None)):
            raise InputError("logger", "must have log_metrics(metrics, step)", type(logger).__name__)
        if every_epochs < 1:
            raise InputError("every_epochs", "must be at least 1", every_epochs)
        self.logger, self.figures, self.every_epochs = logger, dict(figures or {}), every_epochs

    def on_epoch_end(self, run: FitState) -> None:
        """Send the numbers of the epoch, and the figures if it is their turn."""
        if run.rank != 0:
            return
        self.send(run.row, run.step)
        if run.epoch % self.every_epochs == 0:
            for name, draw in self.figures.items():
                self._show(name, draw(run), run)

    def send(self, row: Mapping[str, Any], step: int) -> None:
        """Send numbers.

        Args:
            row: Name -> value; what is no number is left out.
            step: Optimizer step.
        """
        self.logger.log_metrics({name: float(value) for name, value in row.items() if isinstance(value, Real)}, step)

    def _show(self, name: str, figure: Any, run: FitState) -> None:
        add = getattr(getattr(self.logger, "experiment", None), "add_figure", None)
        if callable(add):
            add(name, figure, run.step)
        elif run.folder is not None:
            folder = run.folder / "figures"
            folder.mkdir(exist_ok=True)
            figure.savefig(folder / f"{name}-{run.epoch:04d}.png")


def line_figure(*, points: int = 21, extent: float = 1.0, samples: int = 500, seed: int = 0) -> Draw:
    """Return a drawer of the training loss on one random filter-normalized line through the present weights.

    The direction is the same at every epoch up to the scale of the filters, so that figures can be compared.

    Args:
        points: Points on the line. Default 21.
        extent: Half its length, in units of the normalized direction. Default 1.
        samples: Training samples that are measured, at most. Default 500.
        seed: Seed of the direction and of the samples. Default 0.

    Returns:
        To be handed to `LogTo`.
    """

    def draw(run: FitState) -> Any:
        part = run.data.train
        resident = hasattr(part, "batches")
        batches = list(part.batches(samples)) if resident else part
        few = min(samples, len(part)) if resident else None
        risk = EmpiricalRisk(run.model, plain_loss(run.loss), batches, samples=few, seed=seed)
        line = landscape.random_line(risk.model, seed)
        found = landscape.evaluate(risk, line, landscape.grid(points, extent=extent))
        return viz.line(found, title=f"epoch {run.epoch}")

    return draw
