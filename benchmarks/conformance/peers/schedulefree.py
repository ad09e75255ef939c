"""Adapter of schedulefree, around any base."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, ClassVar

import schedulefree

from lowland.testing import Adapter, OptimizerAdapter

SAVED = "the docstring asks for `eval()` before a checkpoint is saved; the rule saves during training"


class ScheduleFree(OptimizerAdapter):
    name, moves = "schedulefree", "never"
    conventions: ClassVar = dict.fromkeys(
        ("resumes_at_every_step", "average_is_resumed", "loaded_average_is_a_copy"), SAVED
    )
    source: ClassVar = {
        "import": "from schedulefree import ScheduleFreeWrapper",
        "make": """
def make(model, groups, base, momentum=0, **options):
    optimizer = ScheduleFreeWrapper(base(groups, **options)); optimizer.train(); return optimizer
""",
        "averaged": """
@contextlib.contextmanager
def averaged(model, optimizer): optimizer.eval(); yield; optimizer.train()
""",
    }

    def make(self, model: Any, groups: Any, base: Any, options: Any) -> Any:
        # the momentum is the wrapper's
        made = schedulefree.ScheduleFreeWrapper(base(groups, **{k: v for k, v in options.items() if k != "momentum"}))
        made.train()
        return made

    def passes(self, steps: int) -> int:
        return steps

    @contextmanager
    def averaged(self, model: Any, optimizer: Any) -> Generator[None, None, None]:
        optimizer.eval()
        try:
            yield
        finally:
            optimizer.train()

    def trained(self, model: Any, optimizer: Any) -> Any:
        with self.averaged(model, optimizer):
            return super().trained(model, optimizer)


def adapters() -> list[Adapter]:
    return [ScheduleFree()]
