"""What drives slow weights that are exchanged by the two calls which several packages have."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, ClassVar

from lowland.testing import OptimizerAdapter


class SlowWeights(OptimizerAdapter):
    moves = "never"
    conventions: ClassVar = {"scheduler_attaches": "the slow weights are followed in a step of rate 0 too"}
    source: ClassVar = {
        "averaged": """
@contextlib.contextmanager
def averaged(model, optimizer): optimizer.backup_and_load_cache(); yield; optimizer.clear_and_load_backup()
"""
    }

    def passes(self, steps: int) -> int:
        return steps

    @contextmanager
    def averaged(self, model: Any, optimizer: Any) -> Generator[None, None, None]:
        optimizer.backup_and_load_cache()
        try:
            yield
        finally:
            optimizer.clear_and_load_backup()
