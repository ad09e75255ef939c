"""Adapter of loss-landscapes."""

from __future__ import annotations

from typing import Any, ClassVar

import loss_landscapes
import numpy as np
import torch
from loss_landscapes.metrics import Loss

from lowland.testing import Adapter, LandscapeAdapter, NotOffered, Surface

GLOBAL = "has no seed of its own: it draws from torch's global random state, as torch's initializers do"


class LossLandscapes(LandscapeAdapter):
    name = "loss-landscapes"
    conventions: ClassVar = {"random_state_stays": GLOBAL}
    source: ClassVar = {
        "import": "import loss_landscapes",
        "metric": "metric = lambda loss, batches: loss_landscapes.metrics.Loss(loss, *batches[0])",
        "plane": """
def plane(model, loss, batches, shape=(5, 5), extent=1.0, seed=0):
    torch.manual_seed(seed); a = numpy.linspace(-extent, extent, shape[0])
    return loss_landscapes.random_plane(model, metric(loss, batches), extent, shape[0], deepcopy_model=True), a, a
""",
        "line": """
def line(start, end, loss, batches, points):
    return loss_landscapes.linear_interpolation(start, end, metric(loss, batches), points, deepcopy_model=True)
""",
    }

    def plane(
        self, model: Any, loss: Any, batches: Any, *, shape: Any = (5, 5), extent: float = 1.0, seed: int = 0
    ) -> Any:
        if shape[0] != shape[1]:
            raise NotOffered("square grids only")
        torch.manual_seed(seed)
        values = loss_landscapes.random_plane(
            model, self._metric(loss, batches), distance=extent, steps=shape[0], deepcopy_model=True
        )
        axis = np.linspace(-extent, extent, shape[0])
        return Surface(values, axis, axis)

    def line(self, start: Any, end: Any, loss: Any, batches: Any, *, points: int) -> Any:
        metric = self._metric(loss, batches)
        return loss_landscapes.linear_interpolation(start, end, metric, steps=points, deepcopy_model=True)

    @staticmethod
    def _metric(loss: Any, batches: Any) -> Loss:
        if len(batches) > 1:
            raise NotOffered("one batch of data")
        return Loss(loss, *batches[0])


def adapters() -> list[Adapter]:
    return [LossLandscapes()]
