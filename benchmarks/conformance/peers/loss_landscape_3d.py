"""Adapter of loss-landscape-3d."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from loss_landscape_3d import LossLandscapeCalculator, generate_random_directions

from lowland.testing import Adapter, LandscapeAdapter, Surface

GLOBAL = "has no seed of its own: it draws from torch's global random state, as torch's initializers do"


class Planes(LandscapeAdapter):
    name = "loss-landscape-3d"
    conventions: ClassVar = {"random_state_stays": GLOBAL}
    source: ClassVar = {
        "import": "from loss_landscape_3d import LossLandscapeCalculator, generate_random_directions",
        "plane": """
def plane(model, loss, batches, shape=(5, 5), extent=1.0, seed=0):
    torch.manual_seed(seed); u, v = generate_random_directions(model)
    a, b = (numpy.linspace(-extent, extent, n) for n in shape)
    return LossLandscapeCalculator(model, batches, loss).calculate(a, b, u, v, copy.deepcopy(model.state_dict())), a, b
""",
        "line": """
line = lambda start, end, loss, batches, points: LossLandscapeCalculator(start, batches, loss).calculate_1d_path(
    numpy.linspace(0, 1, points), copy.deepcopy(start.state_dict()), end.state_dict())
""",
    }

    def plane(
        self, model: Any, loss: Any, batches: Any, *, shape: Any = (5, 5), extent: float = 1.0, seed: int = 0
    ) -> Any:
        torch.manual_seed(seed)
        u, v = generate_random_directions(model)
        a, b = (np.linspace(-extent, extent, n) for n in shape)
        center = {name: value.clone() for name, value in model.state_dict().items()}
        return Surface(LossLandscapeCalculator(model, batches, loss).calculate(a, b, u, v, center), a, b)

    def line(self, start: Any, end: Any, loss: Any, batches: Any, *, points: int) -> Any:
        ends = [{name: value.clone() for name, value in model.state_dict().items()} for model in (start, end)]
        return LossLandscapeCalculator(start, batches, loss).calculate_1d_path(np.linspace(0, 1, points), *ends)


def adapters() -> list[Adapter]:
    return [Planes()]
