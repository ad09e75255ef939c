"""Adapter of torch2-look-ahead."""

from __future__ import annotations

from typing import Any

import lookahead_pytorch
from benchmarks.conformance.peers.lookahead import SlowWeights

from lowland.testing import Adapter


class Lookahead(SlowWeights):
    name = "torch2-look-ahead"
    source = SlowWeights.source | {
        "import": "from lookahead_pytorch import Lookahead",
        "make": "make = lambda model, groups, base, **options: Lookahead(base(groups, **options), la_steps=3)",
    }

    def make(self, model: Any, groups: Any, base: Any, options: Any) -> Any:
        return lookahead_pytorch.Lookahead(base(groups, **options), la_steps=3)


def adapters() -> list[Adapter]:
    return [Lookahead()]
