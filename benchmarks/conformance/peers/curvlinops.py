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

    source: ClassVar = {
        "import": "from curvlinops import HessianLinearOperator, hutchpp_trace",
        "operator": """
operator = lambda model, loss, batches: HessianLinearOperator(model, loss, list(model.parameters()), batches)
""",
        "product": "product = lambda model, loss, batches, v: operator(model, loss, batches) @ v",
        "ends": """
from scipy.sparse.linalg import eigsh
def ends(model, loss, batches):
    made = operator(model, loss, batches).to_scipy()
    return [float(eigsh(made, k=1, which=end, return_eigenvectors=False)[0]) for end in ("SA", "LA")]
""",
        "trace": """
def trace(model, loss, batches, seed):
    torch.manual_seed(seed); return float(hutchpp_trace(operator(model, loss, batches), 60)), None
""",
        "density": """
from curvlinops.papyan2020traces.spectrum import fast_lanczos
def density(model, loss, batches, seed):
    values, vectors = fast_lanczos(operator(model, loss, batches), sum(p.numel() for p in model.parameters()))
    return [(values, vectors[0] ** 2)]
""",
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
