"""Adapters of Landscaper: its planes and its Hessian estimates."""

from __future__ import annotations

import contextlib
import copy
import io
from typing import Any, ClassVar

import numpy as np
import torch
from landscaper import PyHessian
from landscaper.compute import compute_loss_landscape
from landscaper.utils import generate_random_orthogonal_directions

from lowland.testing import Adapter, CurvatureAdapter, LandscapeAdapter, NotOffered, Surface

USERS = "losses are computed by the user's function, which also chooses the mode of the model"

OWN_NORM = "documents another normalization: each tensor, biases too, is scaled to the root of its number of entries"


def quiet() -> contextlib.ExitStack:
    """It prints what it does."""
    stack = contextlib.ExitStack()
    stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
    stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
    return stack


GLOBAL = "has no seed of its own: it draws from torch's global random state, as torch's initializers do"


class Planes(LandscapeAdapter):
    name = "landscaper planes"
    source: ClassVar = {
        "import": """
from landscaper.compute import compute_loss_landscape
from landscaper.utils import generate_random_orthogonal_directions
""",
        "plane": """
def plane(model, loss, batches, shape=(5, 5), extent=1.0, seed=0):
    torch.manual_seed(seed); axes, size = generate_random_orthogonal_directions(model, n=2), shape[0]
    def measure(net, data): return float(loss(net(data[0]), data[1]))
    found = compute_loss_landscape(model, batches[0], axes, measure, steps=size, distance=extent, dim=2, device="cpu")
    return found[0], *found[1]
""",
    }
    conventions: ClassVar = dict.fromkeys(
        ("dropout_is_off", "model_is_as_before", "model_is_as_before_after_failure"), USERS
    ) | (
        {"random_state_stays": GLOBAL}
        | dict.fromkeys(
            (
                "filters_of_linear",
                "filters_of_convolutions",
                "filters_of_transposed",
                "filters_of_zeros",
                "biases_stay",
            ),
            OWN_NORM,
        )
    )

    def plane(
        self, model: Any, loss: Any, batches: Any, *, shape: Any = (5, 5), extent: float = 1.0, seed: int = 0
    ) -> Any:
        if len(batches) > 1:
            raise NotOffered("the user's function goes over the data")
        if shape[0] != shape[1]:
            raise NotOffered("square grids only")
        torch.manual_seed(seed)
        directions = generate_random_orthogonal_directions(model, n=2)
        measure = lambda net, data: float(loss(net(data[0]), data[1]))  # ruff: ignore[lambda-assignment]
        with quiet():
            values, axes = compute_loss_landscape(
                model, batches[0], directions, measure, steps=shape[0], distance=extent, dim=2, device="cpu"
            )
        return Surface(values, *axes)


class Curvature(CurvatureAdapter):
    name = "landscaper Hessian"
    source: ClassVar = {
        "import": "from landscaper import PyHessian",
        "product": """
def product(model, loss, batches, v):
    made = PyHessian(model, loss, batches, "cpu")
    parts = [part.view_as(p) for part, p in zip(v.split([p.numel() for p in made.params]), made.params)]
    return torch.cat([part.flatten() for part in made.hv_product(parts)[1]])
""",
        "ends": """
ends = lambda model, loss, batches: (None, PyHessian(model, loss, batches, "cpu").eigenvalues()[0][0])
""",
        "trace": """
def trace(model, loss, batches, seed):
    torch.manual_seed(seed); return float(PyHessian(model, loss, batches, "cpu").trace()), None
""",
        "density": """
density = lambda model, loss, batches, seed: list(zip(*PyHessian(model, loss, batches, "cpu").density(iter=4)))
""",
    }

    def operator(self, model: Any, loss: Any, batches: Any) -> Any:
        return PyHessian(model, loss, batches, "cpu")

    def product(self, model: Any, loss: Any, batches: Any, vector: Any) -> Any:
        made = self.operator(model, loss, batches)
        sizes = [p.numel() for p in made.params]
        parts = [part.view_as(p) for part, p in zip(vector.split(sizes), made.params, strict=True)]
        return torch.cat([part.reshape(-1) for part in made.hv_product(parts)[1]])

    def ends(self, model: Any, loss: Any, batches: Any) -> tuple[None, float]:
        with quiet():
            return None, float(self.operator(copy.deepcopy(model).eval(), loss, batches).eigenvalues()[0][0])

    def trace(self, model: Any, loss: Any, batches: Any, *, seed: int) -> tuple[float, None]:
        torch.manual_seed(seed)
        return float(self.operator(model.eval(), loss, batches).trace()), None

    def density(self, model: Any, loss: Any, batches: Any, *, seed: int) -> Any:
        torch.manual_seed(seed)
        made = self.operator(model.eval(), loss, batches)
        values, weights = made.density(iter=min(40, sum(p.numel() for p in model.parameters())))
        return [(np.asarray(v), np.asarray(w)) for v, w in zip(values, weights, strict=True)]


def adapters() -> list[Adapter]:
    return [Planes(), Curvature()]
