"""What LLR did, step by step, and the same done without it: the arms that a fair comparison needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from lowland.core.errors import require
from lowland.losses.reshapers import Reshaper


class Multipliers:
    """The losses met and the gradient multipliers used, one per clean training pass, with their epochs.

    Entries stay on the device until the epoch ends, so that recording needs no synchronization.

    Example:
        >>> recorded = Multipliers()
        >>> recorded.append(0, torch.tensor(2.0), torch.tensor(0.25))
        >>> recorded.append(0, torch.tensor(1.0), torch.tensor(0.75))
        >>> recorded.epoch_means()
        {0: 0.5}
    """

    def __init__(self) -> None:
        self._epochs: list[int] = []
        self._losses: list[float] = []
        self._values: list[float] = []
        self._pending: list[tuple[int, Tensor, Tensor]] = []
        self.restored = 0  # entries that came from a state

    def __len__(self) -> int:
        return len(self._epochs) + len(self._pending)

    def append(self, epoch: int, loss: Tensor, multiplier: Tensor) -> None:
        """Add one pass: its plain batch-mean loss and the factor of its gradient, detached scalars."""
        self._pending.append((epoch, loss, multiplier))

    def settle(self) -> None:
        """Read what is still on the device."""
        if not self._pending:
            return
        numbers = torch.stack(
            [torch.stack([loss.double(), value.double()]) for _, loss, value in self._pending]
        ).tolist()
        self._epochs += [epoch for epoch, _, _ in self._pending]
        self._losses += [pair[0] for pair in numbers]
        self._values += [pair[1] for pair in numbers]
        self._pending = []

    @property
    def epochs(self) -> list[int]:
        """The epoch of every pass."""
        self.settle()
        return self._epochs

    @property
    def losses(self) -> list[float]:
        """The plain loss of every pass."""
        self.settle()
        return self._losses

    @property
    def values(self) -> list[float]:
        """The multiplier of every pass."""
        self.settle()
        return self._values

    def epoch_means(self) -> dict[int, float]:
        """Return the mean multiplier of every epoch."""
        grouped: dict[int, list[float]] = {}
        for epoch, value in zip(self.epochs, self.values, strict=True):
            grouped.setdefault(epoch, []).append(value)
        return {epoch: sum(values) / len(values) for epoch, values in grouped.items()}

    def state_dict(self) -> dict[str, list[float]]:
        """Return the record as the plain lists ``epochs``, ``losses`` and ``values``."""
        return {"epochs": list(self.epochs), "losses": list(self.losses), "values": list(self.values)}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Multipliers:
        """Make a record from what `state_dict` returned."""
        record = cls()
        record._epochs = [int(epoch) for epoch in state["epochs"]]
        record._losses = [float(loss) for loss in state["losses"]]
        record._values = [float(value) for value in state["values"]]
        record.restored = len(record)
        return record


def slope_over_losses(
    reshaper: Reshaper, recorded: Multipliers, initial_loss: float, *, points: int = 201, bins: int = 40
) -> xr.Dataset:
    """Return the slope of a reshaper over the losses that training met, and how often it met them.

    Args:
        reshaper: The function f, at one epoch (`Reshaper.at`).
        recorded: `LLR.multipliers` of a run.
        initial_loss: L0, in units of the loss.
        points: Points of the slope's curve. Default 201.
        bins: Bins of the histogram; both reach from 0 to the largest finite loss met. Default 40.

    Returns:
        Dims ``loss`` (coordinate, in units of the loss; variable ``slope``) and ``bin`` (coordinates ``left`` and
        ``right``; variable ``passes``), and the scalar ``mean_multiplier``.

    Raises:
        InputError: If nothing finite was recorded.

    Example:
        >>> from lowland.losses import Sech
        >>> recorded = Multipliers()
        >>> recorded.append(0, torch.tensor(2.0), torch.tensor(0.5))
        >>> int(slope_over_losses(Sech(), recorded, 2.3).passes.sum())
        1
    """
    met = np.asarray(recorded.losses, dtype=np.float64)
    met = met[np.isfinite(met)]
    require(len(met), "recorded", "must hold at least one finite loss", len(recorded))
    top = max(float(met.max()), 1e-38)  # a histogram needs some width
    losses = np.linspace(0.0, top, points)
    counts, edges = np.histogram(met, bins=bins, range=(0.0, top))
    slope = reshaper.multiplier(torch.as_tensor(losses), initial_loss).numpy()
    return xr.Dataset(
        {"slope": ("loss", slope), "passes": ("bin", counts), "mean_multiplier": ((), float(np.mean(recorded.values)))},
        coords={"loss": losses, "left": ("bin", edges[:-1]), "right": ("bin", edges[1:])},
        attrs={"reshaper": repr(reshaper), "initial_loss": initial_loss},
    )
