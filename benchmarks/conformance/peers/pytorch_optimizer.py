"""Adapters of pytorch_optimizer's SAM family."""

from __future__ import annotations

from typing import Any, ClassVar

import pytorch_optimizer
from benchmarks.conformance.peers.lookahead import SlowWeights

from lowland.testing import Adapter, OptimizerAdapter

BEFORE = "the docstring asks for gradients before `step(closure)`; the closure is called at the moved weights only"


class Sam(OptimizerAdapter):
    name, formula = "pytorch_optimizer SAM", "sam"
    conventions: ClassVar = {"closure_comes_first": BEFORE}
    kind = pytorch_optimizer.SAM
    extra: ClassVar[dict[str, Any]] = {}

    @property
    def source(self) -> Any:  # type: ignore[override]
        kind, extra = self.kind.__name__, "".join(f", {name}={value}" for name, value in self.extra.items())
        return {
            "import": f"from pytorch_optimizer import {kind}",
            "make": f"make = lambda model, groups, base, **options: {kind}(groups, base, rho=0.05{extra}, **options)",
            "step": "def step(optimizer, closure): loss = closure(); optimizer.step(closure); return loss",
        }

    def make(self, model: Any, groups: Any, base: Any, options: Any) -> Any:
        return self.kind(groups, base, rho=self.rho, **self.extra, **options)

    def step(self, model: Any, optimizer: Any, closure: Any) -> Any:
        loss = closure()
        optimizer.step(closure)
        return loss


class LookSam(Sam):
    name, formula = "pytorch_optimizer LookSAM", "other"
    kind = pytorch_optimizer.LookSAM
    extra: ClassVar[dict[str, Any]] = {"k": 5}

    def passes(self, steps: int) -> int:
        return steps + -(-steps // 5)


class FriendlySam(Sam):
    name, formula = "pytorch_optimizer FriendlySAM", "other"
    kind = pytorch_optimizer.FriendlySAM


class Wsam(OptimizerAdapter):
    name = "pytorch_optimizer WSAM"
    source: ClassVar = {
        "import": "from pytorch_optimizer import WSAM",
        "make": "make = lambda model, groups, base, **options: WSAM(model, groups, base, rho=0.05, **options)",
    }

    def make(self, model: Any, groups: Any, base: Any, options: Any) -> Any:
        return pytorch_optimizer.WSAM(model, groups, base, rho=self.rho, **options)


class Lookahead(SlowWeights):
    name = "pytorch_optimizer Lookahead"
    source = SlowWeights.source | {
        "import": "from pytorch_optimizer import Lookahead",
        "make": "make = lambda model, groups, base, **options: Lookahead(base(groups, **options), k=3)",
    }

    def make(self, model: Any, groups: Any, base: Any, options: Any) -> Any:
        return pytorch_optimizer.Lookahead(base(groups, **options), k=3)


def adapters() -> list[Adapter]:
    return [Sam(), Wsam(), LookSam(), FriendlySam(), Lookahead()]
