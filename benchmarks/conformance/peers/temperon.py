"""Adapter of Temperon."""

from __future__ import annotations

from typing import Any, ClassVar

import temperon

from lowland.testing import Adapter, OptimizerAdapter


class Tail(OptimizerAdapter):
    name, formula = "temperon", "sam"
    source: ClassVar = {
        "import": "from temperon import Temperon",
        "make": """
make = lambda model, groups, base, **options: Temperon(
    base(groups, **options), total_steps=100, tail_frac=1.0, rho=0.05)
""",
    }

    def make(self, model: Any, groups: Any, base: Any, options: Any) -> Any:
        return temperon.Temperon(base(groups, **options), total_steps=100, tail_frac=1.0, rho=self.rho)


def adapters() -> list[Adapter]:
    return [Tail()]
