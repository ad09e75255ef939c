"""Adapter of hessian-eigenthings."""

from __future__ import annotations

from typing import Any, ClassVar

import hessian_eigenthings as he

from lowland.testing import Adapter, CurvatureAdapter


class HessianEigenthings(CurvatureAdapter):
    name = "hessian-eigenthings"
    source: ClassVar = {
        "import": "import hessian_eigenthings as he",
        "operator": "operator = lambda model, loss, data: he.HessianOperator(model, data, he.supervised_loss(loss))",
        "product": "product = lambda model, loss, batches, v: operator(model, loss, batches).matvec(v)",
        "ends": """
def ends(model, loss, batches):
    made = operator(model, loss, batches)
    return [float(he.lanczos(made, k=1, which=e, max_iter=made.size, seed=0).eigenvalues[0]) for e in ("SA", "LA")]
""",
        "trace": """
def trace(model, loss, batches, seed):
    found = he.trace(operator(model, loss, batches), seed=seed); return float(found.estimate), float(found.stderr)
""",
        "density": """
def density(model, loss, batches, seed):
    made = operator(model, loss, batches)
    found = he.spectral_density(made, num_runs=1, lanczos_steps=made.size, seed=seed)
    return [(n[n == n], w[n == n]) for n, w in zip(found.raw_eigenvalues, found.raw_weights)]
""",
    }

    def operator(self, model: Any, loss: Any, batches: Any) -> Any:
        return he.HessianOperator(model, batches, he.supervised_loss(loss))

    def product(self, model: Any, loss: Any, batches: Any, vector: Any) -> Any:
        return self.operator(model, loss, batches).matvec(vector)

    def ends(self, model: Any, loss: Any, batches: Any) -> tuple[float, float]:
        made = self.operator(model, loss, batches)
        steps = min(40, made.size)
        return tuple(
            float(he.lanczos(made, k=1, which=end, max_iter=steps, seed=0).eigenvalues[0]) for end in ("SA", "LA")
        )

    def trace(self, model: Any, loss: Any, batches: Any, *, seed: int) -> tuple[float, float]:
        found = he.trace(self.operator(model, loss, batches), seed=seed)
        return float(found.estimate), float(found.stderr)

    def density(self, model: Any, loss: Any, batches: Any, *, seed: int) -> Any:
        made = self.operator(model, loss, batches)
        found = he.spectral_density(made, num_runs=4, lanczos_steps=min(40, made.size), seed=seed)
        runs = zip(found.raw_eigenvalues.numpy(), found.raw_weights.numpy(), strict=True)
        return [(nodes[nodes == nodes], weights[nodes == nodes]) for nodes, weights in runs]  # padded with NaN


def adapters() -> list[Adapter]:
    return [HessianEigenthings()]
