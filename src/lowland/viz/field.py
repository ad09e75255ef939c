"""A measured function on a grid, and what each of its points is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from lowland.core.errors import InputError
from lowland.core.schema import STATUS_FAILED, STATUS_INTERPOLATED, STATUS_MEASURED, STATUS_OPEN
from lowland.viz import style

FloatArray: TypeAlias = NDArray[np.float64]

MARK_KINDS = ("open", "failed", "nan", "inf", "-inf", "measured", "interpolated")
"""Every way in which a grid point can be more (or less) than a finite number."""


class Mark(NamedTuple):
    """Points of one kind, their look and what the legend says."""

    kind: str  # One of `style.MARKS`
    x: FloatArray  # Shape [count]
    y: FloatArray  # Shape [count]
    texts: tuple[str, ...] = ()  # What stands beside each; () for nothing

    @property
    def look(self) -> style.MarkStyle:
        """Color and symbol."""
        return style.MARKS[self.kind]

    @property
    def label(self) -> str:
        """Legend entry, with the number of points."""
        return f"{self.look.label} ({self.x.size})"


@dataclass(frozen=True, slots=True)
class Field:
    """A measured function on a grid; ``values[i, j]`` belongs to ``(x[i], y[j])``."""

    x: FloatArray  # Ascending coordinates, shape [nx]
    y: FloatArray  # Ascending coordinates, shape [ny]
    values: FloatArray  # Shape [nx, ny]; NaN and inf are kept
    status: NDArray[np.uint8]  # Status of each point as in `core.schema`, shape [nx, ny]
    error: FloatArray | None = None  # Standard errors, shape [nx, ny]; None where there are none

    def __post_init__(self) -> None:
        """Check shapes and order, since a transposed grid would still draw."""
        shape = (self.x.size, self.y.size)
        for name in ("values", "status", "error"):
            entry = getattr(self, name)
            if entry is not None and entry.shape != shape:
                raise InputError(name, f"must have the shape {shape} of (x, y)", entry.shape)
        for name in ("x", "y"):
            if np.any(np.diff(getattr(self, name)) <= 0):
                raise InputError(name, "must ascend", getattr(self, name).tolist())

    @property
    def known(self) -> NDArray[np.bool_]:
        """Where a finite number stands, measured or interpolated; shape [nx, ny]."""
        has_value = (self.status == STATUS_MEASURED) | (self.status == STATUS_INTERPOLATED)
        return np.asarray(has_value & np.isfinite(self.values))

    @property
    def shown(self) -> FloatArray:
        """Values with NaN wherever no finite number stands; shape [nx, ny]."""
        return np.where(self.known, self.values, np.nan)

    @property
    def finished(self) -> bool:
        """Whether no point is open."""
        return not bool((self.status == STATUS_OPEN).any())

    @property
    def extent(self) -> tuple[float, float, float, float]:
        """Left, right, bottom and top coordinate."""
        return float(self.x[0]), float(self.x[-1]), float(self.y[0]), float(self.y[-1])

    @property
    def square(self) -> bool:
        """Whether both axes can be drawn to one scale: otherwise the figure would be a stripe."""
        left, right, bottom, top = self.extent
        return right > left and top > bottom and 1 / 3 <= (right - left) / (top - bottom) <= 3

    @property
    def masks(self) -> dict[str, NDArray[np.bool_]]:
        """Which points are of each kind, in the order of `MARK_KINDS`."""
        has_value = (self.status == STATUS_MEASURED) | (self.status == STATUS_INTERPOLATED)
        return {
            "open": self.status == STATUS_OPEN,
            "failed": self.status == STATUS_FAILED,
            "nan": has_value & np.isnan(self.values),
            "inf": has_value & np.isposinf(self.values),
            "-inf": has_value & np.isneginf(self.values),
            "measured": self.status == STATUS_MEASURED,
            "interpolated": self.status == STATUS_INTERPOLATED,
        }

    def marks(self, points: bool | None = None) -> list[Mark]:
        """Return what has to be marked on a figure: everything that is not simply a measured number."""
        masks = self.masks
        both = bool(masks["measured"].any() and masks["interpolated"].any())
        kinds = MARK_KINDS if (both if points is None else points) else MARK_KINDS[:5]
        places = {kind: np.nonzero(masks[kind]) for kind in kinds}
        return [Mark(kind, self.x[i], self.y[j]) for kind, (i, j) in places.items() if i.size]
