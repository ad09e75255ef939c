"""Adapters of nngeom: its planes and its curvature."""

from __future__ import annotations

from typing import Any, ClassVar

import nngeom
import torch

from lowland.testing import Adapter, CurvatureAdapter, LandscapeAdapter, NotOffered, Surface


def one(batches: Any) -> Any:
    if len(batches) > 1:
        raise NotOffered("one batch of data")
    return batches[0]


def wrapped(model: Any, loss: Any) -> Any:
    return nngeom.Model(model, lambda module, batch: loss(module(batch[0]), batch[1]))


_WRAPPED = """
wrapped = lambda model, loss: nngeom.Model(model, lambda module, batch: loss(module(batch[0]), batch[1]))
"""


class Planes(LandscapeAdapter):
    name = "nngeom planes"
    source: ClassVar = {
        "import": "import nngeom",
        "wrapped": _WRAPPED,
        "plane": """
def plane(model, loss, batches, shape=(5, 5), extent=1.0, seed=0):
    found = nngeom.plane_slice_2d(wrapped(model, loss), batches[0], span=extent, steps=shape[0], seed=seed)
    return found.losses.T, found.alphas, found.betas
""",
        "line": """
def line(start, end, loss, batches, points):
    return nngeom.linear_interpolation(wrapped(start, loss), wrapped(end, loss), batches[0], steps=points).losses
""",
    }

    def plane(
        self, model: Any, loss: Any, batches: Any, *, shape: Any = (5, 5), extent: float = 1.0, seed: int = 0
    ) -> Any:
        if shape[0] != shape[1]:
            raise NotOffered("square grids only")
        found = nngeom.plane_slice_2d(wrapped(model, loss), one(batches), span=extent, steps=shape[0], seed=seed)
        return Surface(found.losses.T, found.alphas, found.betas)

    def line(self, start: Any, end: Any, loss: Any, batches: Any, *, points: int) -> Any:
        return nngeom.linear_interpolation(wrapped(start, loss), wrapped(end, loss), one(batches), steps=points).losses


class Curvature(CurvatureAdapter):
    name = "nngeom curvature"
    source: ClassVar = {
        "import": "import nngeom",
        "wrapped": _WRAPPED,
        "product": """
product = lambda model, loss, batches, v: torch.as_tensor(wrapped(model, loss).hvp(batches[0], v.numpy()))
""",
        "ends": """
def ends(model, loss, batches):
    found = nngeom.lanczos_spectrum(wrapped(model, loss), batches[0], m=40, seed=0).eigenvalues
    return found.min(), found.max()
""",
        "trace": """
trace = lambda model, loss, batches, seed: (nngeom.hutchinson_trace(wrapped(model, loss), batches[0], seed=seed), None)
""",
    }

    def product(self, model: Any, loss: Any, batches: Any, vector: Any) -> Any:
        return torch.as_tensor(wrapped(model, loss).hvp(one(batches), vector.numpy()))

    def ends(self, model: Any, loss: Any, batches: Any) -> tuple[float, float]:
        found = nngeom.lanczos_spectrum(wrapped(model, loss), one(batches), m=40, seed=0).eigenvalues
        return float(found.min()), float(found.max())

    def trace(self, model: Any, loss: Any, batches: Any, *, seed: int) -> tuple[float, None]:
        return nngeom.hutchinson_trace(wrapped(model, loss), one(batches), seed=seed), None


def adapters() -> list[Adapter]:
    return [Planes(), Curvature()]
