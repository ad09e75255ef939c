"""What a training ends with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from lowland.core.facts import ShowsFacts
from lowland.training.metrics import Row


@dataclass(repr=False, frozen=True)
class FitResult(ShowsFacts):
    """What a run ended with.

    Args:
        model: The model with the chosen weights, in evaluation mode.
        epoch: The chosen epoch, from 1.
        test: Loss and accuracy on the test part, with standard errors, measured once, at the chosen epoch.
        rows: One row of numbers per epoch; see `lowland.training.metrics.COLUMNS`.
        steps: How often the optimizer was stepped, resumed parts included.
        passes: Forward-backward passes of training.
        seconds: Spent in training steps.
        folder: The run's folder, or None.
    """

    model: nn.Module
    epoch: int
    test: dict[str, float]
    rows: list[Row]
    steps: int
    passes: int
    seconds: float
    folder: Path | None

    def _facts(self) -> dict[str, str]:
        numbers = {f"test {name}": f"{self.test[name]:.4g}" for name in ("accuracy", "loss") if name in self.test}
        counts = {"epoch": f"{self.epoch} of {len(self.rows)}", "steps": str(self.steps), "passes": str(self.passes)}
        return counts | numbers | {"seconds": f"{self.seconds:.1f}", "folder": str(self.folder or "")}

    @property
    def chosen(self) -> Row:
        """The row of the chosen epoch."""
        return self.rows[self.epoch - 1]
