"""Adapter of unifiedSAM."""

from __future__ import annotations

from typing import Any, ClassVar

import unifiedsam

from lowland.testing import Adapter, OptimizerAdapter


class Unified(OptimizerAdapter):
    name, formula = "unifiedSAM", "sam"
    source: ClassVar = {
        "import": "from unifiedsam import unifiedSAM",
        "make": "make = lambda model, groups, base, **options: unifiedSAM(groups, base, rho=0.05, lambd=1, **options)",
        "step": """
def step(optimizer, closure):
    loss = closure(); optimizer.first_step(zero_grad=True); closure(); optimizer.second_step(); return loss
""",
    }

    def make(self, model: Any, groups: Any, base: Any, options: Any) -> Any:
        return unifiedsam.unifiedSAM(groups, base, rho=self.rho, lambd=1.0, **options)

    def step(self, model: Any, optimizer: Any, closure: Any) -> Any:
        loss = closure()
        optimizer.first_step(zero_grad=True)
        closure()
        optimizer.second_step()
        return loss


def adapters() -> list[Adapter]:
    return [Unified()]
