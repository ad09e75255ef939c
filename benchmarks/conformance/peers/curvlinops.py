"""Adapter of curvlinops."""

from __future__ import annotations

from typing import Any, ClassVar

import curvlinops
import torch
from curvlinops.papyan2020traces.spectrum import fast_lanczos
from scipy.sparse.linalg import eigsh

from lowland.testing import Adapter, CurvatureAdapter


class Curvlinops(CurvatureAdapter):
    name = "curvlinops"
    conventions: ClassVar = {
        "ends_of_nothing": "has no eigensolver of its own; SciPy's ARPACK refuses an operator that is 0",
        "density_has_no_ghosts": "the docstring of its Lanczos run says that it does not reorthogonalize",
    }

    def operator(self, model: Any, loss: Any, batches: Any) -> Any:
        return curvlinops.HessianLinearOperator(model, loss, list(model.parameters()), batches)

    def product(self, model: Any, loss: Any, batches: Any, vector: Any) -> Any:
        return self.operator(model, loss, batches) @ vector

    def ends(self, model: Any, loss: Any, batches: Any) -> tuple[float, float]:
        operator = self.operator(model, loss, batches).to_scipy()
        return tuple(float(eigsh(operator, k=1, which=end, return_eigenvectors=False)[0]) for end in ("SA", "LA"))

    def trace(self, model: Any, loss: Any, batches: Any, *, seed: int) -> tuple[float, None]:
        torch.manual_seed(seed)
        return float(curvlinops.hutchpp_trace(self.operator(model, loss, batches), 60)), None

    def density(self, model: Any, loss: Any, batches: Any, *, seed: int) -> Any:
        torch.manual_seed(seed)
        operator = self.operator(model, loss, batches)
        values, vectors = fast_lanczos(operator, min(40, operator.shape[0]))
        return [(values.numpy(), vectors[0].numpy() ** 2)]


def adapters() -> list[Adapter]:
    return [Curvlinops()]
