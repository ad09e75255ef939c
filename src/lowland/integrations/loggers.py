"""Scalars and figures of a run for TensorBoard, Weights & Biases, MLflow, trackio, or any other logger of a trainer."""

from __future__ import annotations

import importlib
import io
import warnings
from collections.abc import Callable, Mapping
from numbers import Real
from types import ModuleType
from typing import Any

import numpy as np

from lowland import landscape, viz
from lowland.core.errors import InputError, LowlandWarning, require
from lowland.training import FitState, Hook
from lowland.training.risks import training_risk

Draw = Callable[[FitState], Any]
"""Draws a figure of a run at the end of an epoch, by matplotlib or plotly."""


class LogTo(Hook):
    """Sends the numbers of every epoch, and figures, to a tracker: the logger object that a trainer has already.

    Takes any logger of Fabric or Lightning (TensorBoard, Weights & Biases, MLflow ...), a tracker of Accelerate, a
    ``SummaryWriter``, a run of Weights & Biases, and the modules ``wandb``, ``mlflow`` and ``trackio``. Numbers are
    those of ``metrics.csv``. In a loop of one's own `send` and `show` are called by hand.
    A figure that the tracker cannot show is kept in the run's folder, as ``figures/NAME-EPOCH`` (png, or html).
    A tracker that fails ends no training: its first failure is a warning, and every epoch is tried again.

    Args:
        logger: The tracker.
        figures: Name -> function that draws a figure of the run (matplotlib or plotly), such as `line_figure`.
        every_epochs: Epochs between figures. Default 1.
        numbers: False sends figures alone, beside a trainer that logs the numbers itself. Default True.

    Raises:
        InputError: If the logger takes no numbers, or the number of epochs is not positive.

    Example:
        >>> class Printed:
        ...     def log_metrics(self, metrics, step=None):
        ...         print(step, sorted(metrics))
        >>> LogTo(Printed()).send({"train_loss": 0.5}, 10)
        10 ['train_loss']
    """

    def __init__(
        self, logger: Any, *, figures: Mapping[str, Draw] | None = None, every_epochs: int = 1, numbers: bool = True
    ) -> None:
        if _taker(logger) is None:
            rule = "must take numbers by log_metrics(metrics, step), log(metrics, step=...) or add_scalar"
            raise InputError("logger", rule, type(logger).__name__)
        require(every_epochs >= 1, "every_epochs", "must be at least 1", every_epochs)
        self.logger, self.figures, self.every_epochs, self.numbers = logger, dict(figures or {}), every_epochs, numbers
        self._failed = False

    def on_epoch_end(self, run: FitState) -> None:
        """Send the numbers of the epoch, and the figures if it is their turn."""
        if run.rank != 0:
            return
        if self.numbers:
            self._try(self.send, run.row, run.step)
        for name, draw in self.figures.items() if run.epoch % self.every_epochs == 0 else ():
            figure = draw(run)
            if not self._try(self.show, name, figure, run.step) and run.folder is not None:
                folder = run.folder / "figures"
                folder.mkdir(exist_ok=True)
                (folder / f"{name}-{run.epoch:04d}.{_kind(figure)}").write_bytes(_file(figure))
        self._try(_keep, self.logger)

    def _try(self, call: Callable[..., Any], *arguments: Any) -> Any:
        """Call the tracker; where it fails say so once, since its numbers stand in metrics.csv too."""
        try:
            return call(*arguments)
        except Exception as error:
            if not self._failed:
                said = f"{type(self.logger).__name__} failed ({type(error).__name__}: {error}); training goes on"
                warnings.warn(
                    f"{said}, and so do tries to log; further failures are not told", LowlandWarning, stacklevel=2
                )
            self._failed = True
            return None

    def send(self, row: Mapping[str, Any], step: int) -> None:
        """Send numbers by name of an optimizer step; what is no number is left out."""
        take = _taker(self.logger)
        assert take is not None
        take({name: float(value) for name, value in row.items() if isinstance(value, Real)}, step)

    def show(self, name: str, figure: Any, step: int) -> bool:
        """Show a figure of an optimizer step; False where the tracker shows none of this kind."""
        return _show(self.logger, name, figure, step)


def _show(logger: Any, name: str, figure: Any, step: int) -> bool:
    of_lightning = hasattr(logger, "experiment")
    target = logger.experiment if of_lightning else getattr(logger, "tracker", logger)
    tracker = (target.__name__ if isinstance(target, ModuleType) else type(target).__module__).partition(".")[0]
    if callable(getattr(target, "add_figure", None)) and _kind(figure) == "png":
        target.add_figure(name, figure, step)
    elif tracker == "mlflow":
        run = (logger.run_id,) if of_lightning else ()
        place = target if hasattr(target, "log_figure") else logger  # the tracker of Accelerate has it by itself
        place.log_figure(*run, figure, f"{name}-{step:06d}.{_kind(figure)}")
    elif tracker == "wandb":
        library = importlib.import_module("wandb")
        shown = library.Html(_file(figure).decode()) if _kind(figure) == "html" else library.Image(_pixels(figure))
        take = _taker(logger)
        assert take is not None
        take({name: shown}, step)
    elif tracker == "trackio" and _kind(figure) == "png":
        target.log({name: target.Image(_pixels(figure))}, step=step)
    else:
        return False
    return True


def _taker(logger: Any) -> Callable[[dict[str, Any], int], Any] | None:
    if callable(getattr(logger, "log_metrics", None)):
        return lambda metrics, step: logger.log_metrics(metrics, step=step)
    if callable(getattr(logger, "log", None)):
        return lambda metrics, step: logger.log(metrics, step=step)
    if callable(getattr(logger, "add_scalar", None)):
        return lambda metrics, step: [logger.add_scalar(name, value, step) for name, value in metrics.items()]
    return None


def _keep(logger: Any) -> None:
    """Have buffered numbers written: Fabric's CSVLogger keeps up to a hundred rows until it is told."""
    of_lightning = hasattr(logger, "experiment") and hasattr(logger, "log_hyperparams")
    # `wandb.save` is something else
    keep = getattr(logger, "save" if of_lightning else "flush", None)
    if callable(keep):
        keep()


def _kind(figure: Any) -> str:
    return "html" if hasattr(figure, "to_html") else "png"


def _file(figure: Any) -> bytes:
    if _kind(figure) == "html":
        return str(figure.to_html(include_plotlyjs="cdn")).encode()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _pixels(figure: Any) -> Any:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="rgba", dpi=figure.dpi)
    width, height = figure.canvas.get_width_height()
    return np.frombuffer(buffer.getvalue(), np.uint8).reshape(height, width, 4)


def line_figure(
    *, points: int = 21, extent: float = 1.0, samples: int = 500, seed: int = 0, backend: str = "matplotlib"
) -> Draw:
    """Return a drawer of the training loss on one random filter-normalized line through the present weights.

    The direction is the same at every epoch up to the scale of the filters, so that figures can be compared.

    Args:
        points: Points on the line. Default 21.
        extent: Half its length, in units of the normalized direction. Default 1.
        samples: Training samples that are measured, at most. Default 500.
        seed: Seed of the direction and of the samples. Default 0.
        backend: ``"matplotlib"``, or ``"plotly"`` for a figure to move about in. Default ``"matplotlib"``.

    Returns:
        To be handed to `LogTo`.
    """

    def draw(run: FitState) -> Any:
        risk = training_risk(run, samples=samples, seed=seed, batch_norm="running")
        line = landscape.random_line(risk.model, seed)
        found = landscape.evaluate(risk, line, landscape.grid(points, extent=extent))
        return viz.line(found, title=f"epoch {run.epoch}", backend=backend)

    return draw
