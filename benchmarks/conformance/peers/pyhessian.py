"""Adapter of PyHessian."""

from __future__ import annotations

import copy
import random
from typing import Any, ClassVar

import numpy as np
import torch
from pyhessian import hessian

from lowland.testing import Adapter, CurvatureAdapter


class PyHessian(CurvatureAdapter):
    name = "PyHessian"
    source: ClassVar = {
        "import": "from pyhessian import hessian",
        "product": """
def product(model, loss, batches, v):
    made = hessian(model, loss, dataloader=batches, cuda=False)
    parts = [part.view_as(p) for part, p in zip(v.split([p.numel() for p in made.params]), made.params)]
    return torch.cat([part.flatten() for part in made.dataloader_hv_product(parts)[1]])
""",
        "single": """
def single(model, loss, batches):  # it computes in float32
    return hessian(model.float(), loss, dataloader=[(x.float(), y.float()) for x, y in batches], cuda=False)
""",
        "ends": "ends = lambda model, loss, batches: (None, single(model, loss, batches).eigenvalues()[0][0])",
        "trace": """
def trace(model, loss, batches, seed):
    torch.manual_seed(seed); found = single(model, loss, batches).trace(); return sum(found) / len(found), None
""",
        "density": """
density = lambda model, loss, batches, seed: list(zip(*single(model, loss, batches).density(iter=4)))
""",
    }

    def operator(self, model: Any, loss: Any, batches: Any) -> Any:
        single = copy.deepcopy(model).float(), [(x.float(), y.float()) for x, y in batches]
        return hessian(single[0], loss, dataloader=single[1], cuda=False)

    def product(self, model: Any, loss: Any, batches: Any, vector: Any) -> Any:
        made = hessian(model, loss, dataloader=batches, cuda=False)
        sizes = [p.numel() for p in made.params]
        parts = [part.view_as(p) for part, p in zip(vector.split(sizes), made.params, strict=True)]
        return torch.cat([part.reshape(-1) for part in made.dataloader_hv_product(parts)[1]])

    def ends(self, model: Any, loss: Any, batches: Any) -> tuple[None, float]:
        return None, float(self.operator(model, loss, batches).eigenvalues()[0][0])

    def trace(self, model: Any, loss: Any, batches: Any, *, seed: int) -> tuple[float, None]:
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        return float(np.mean(self.operator(model, loss, batches).trace())), None

    def density(self, model: Any, loss: Any, batches: Any, *, seed: int) -> Any:
        torch.manual_seed(seed)
        values, weights = self.operator(model, loss, batches).density(iter=min(40, self._size(model)))
        return [(np.asarray(v), np.asarray(w)) for v, w in zip(values, weights, strict=True)]

    @staticmethod
    def _size(model: Any) -> int:
        return sum(p.numel() for p in model.parameters())


def adapters() -> list[Adapter]:
    return [PyHessian()]
