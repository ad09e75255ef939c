"""Products as events, for those who want to see how far an estimate is."""

from __future__ import annotations

import math
from collections.abc import Generator
from contextlib import contextmanager

from lowland.core.pace import Clock, shown
from lowland.curvature.operator import AbstractOperator


@contextmanager
def counted(
    operator: AbstractOperator, progress: bool, label: str, total: int, *, bound: bool = False
) -> Generator[None]:
    """Show the products of a block where asked to; where the total is a bound nothing is said of the time left."""
    with shown(progress, label) as on_event:
        if on_event is None:
            yield
            return
        before, given = operator.products, operator.on_product
        clock = Clock(math.inf if bound else total, 0, on_event)

        def tick(products: int) -> None:
            if given is not None:
                given(products)
            clock.tell("progress", products - before, total=max(total, products - before))

        clock.tell("started", 0, total=total)
        operator.on_product = tick
        try:
            yield
        finally:
            operator.on_product = given
        made = operator.products - before
        clock.tell("done", made, total=made)
