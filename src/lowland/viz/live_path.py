"""The path of a training that still runs: its snapshots so far, in the plane of their two principal directions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from lowland.core.errors import StoreError
from lowland.core.schema import new_trajectory
from lowland.results.run import Run
from lowland.results.snapshots import SnapshotReader
from lowland.viz.field import FloatArray

if TYPE_CHECKING:
    import xarray as xr

_FOLDED: Final = 1 << 14
"""Numbers to which the weights of a snapshot are folded; inner products are then right to about one per cent."""
_STATISTICS: Final = ("running_mean", "running_var")
"""Buffers of batch norm, which lie beside the weights and are no part of the path."""
_ROWS: Final = 17
_COLUMNS: Final = 61


class PathSoFar:
    """Reads each snapshot of a run once, and keeps it folded by random signs: long paths of large networks fit."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._rows: dict[int, FloatArray] = {}
        self._signs: NDArray[np.int8] = np.ones(0, np.int8)

    def trajectory(self) -> xr.Dataset:
        """Return the path as far as it is; a StoreError where fewer than two finite snapshots are."""
        reader = SnapshotReader(self.folder / "snapshots")
        if not set(self._rows) <= set(reader.steps):  # another run has begun there
            self._rows = {}
        for step in reader.steps:
            if step not in self._rows:
                self._rows[step] = self._folded(reader.read(step))
        steps = [step for step in reader.steps if np.isfinite(self._rows[step]).all()]
        if len(steps) < 2:
            raise StoreError(f"{self.folder} holds fewer than two finite snapshots yet")
        rows = np.stack([self._rows[step] for step in steps])
        rows = rows - rows[-1]
        values, vectors = np.linalg.eigh(rows @ rows.T)
        values, vectors = np.maximum(values[:-3:-1], 0.0), vectors[:, :-3:-1]
        coordinates = vectors * np.sqrt(values)
        far = coordinates[np.abs(coordinates).argmax(0), (0, 1)]
        coordinates *= np.where(far < 0, -1.0, 1.0)  # else the picture flips from one moment to the next
        shares = values / (np.square(rows).sum() or 1.0)
        return new_trajectory(
            coordinates, steps=steps, variables={"variance_share": ("axis", shares)}, attrs={"anchored": 1}
        )

    def said(self, path: xr.Dataset) -> str:
        """Return how far the training is."""
        loss = Run(self.folder).last("train_loss")
        text = f"{path.sizes['snapshot']} snapshots up to step {int(path['step'][-1])}"
        return text if loss is None else f"{text}, train loss {loss:.4g}"

    def _folded(self, arrays: dict[str, NDArray[Any]]) -> FloatArray:
        kept = [value.ravel() for name, value in arrays.items() if name.rpartition(".")[2] not in _STATISTICS]
        flat = np.concatenate(kept).astype(np.float64)
        if flat.size <= _FOLDED:
            return flat
        if self._signs.size != flat.size:
            self._signs = np.random.Generator(np.random.Philox(0)).choice(np.array([-1, 1], np.int8), flat.size)
        whole = np.zeros(-(-flat.size // _FOLDED) * _FOLDED)
        whole[: flat.size] = flat * self._signs
        return np.asarray(whole.reshape(-1, _FOLDED).sum(0))


def path_as_text(path: xr.Dataset) -> str:
    """Return a path as characters: a dot where it was, a disk where it is."""
    places = np.asarray(path["coordinate"].values[:, :2], dtype=np.float64)
    low, width = places.min(0), np.ptp(places, axis=0)
    shares = (places - low) / np.where(width > 0, width, 1.0)
    cells = np.full((_ROWS, _COLUMNS), " ")
    columns, rows = np.round(shares * (_COLUMNS - 1, _ROWS - 1)).astype(int).T
    cells[_ROWS - 1 - rows, columns] = "·"
    cells[_ROWS - 1 - rows[-1], columns[-1]] = "●"
    return "\n".join("".join(row).rstrip() for row in cells)
