"""What the ledger's measures have to show before an answer counts; every row declares one."""

from __future__ import annotations

import math
from typing import Final

from lowland.study import Instrument

__all__ = [
    "ACCURACY",
    "BYTES",
    "COSINE",
    "COUNT",
    "DIGITS",
    "DIVERGED",
    "DROPS",
    "ESCAPE",
    "EXACT",
    "LEARNED",
    "PATH",
    "PERTURBATION",
    "SHARE",
    "STEPS",
    "TAU",
    "TRAIN_LOSS",
    "log_measure",
]

LEARNED: Final = 1.15
"""Train loss that both sides of a comparison of surfaces must reach: half of ln 10, the loss of a guess."""

ACCURACY: Final = Instrument(floor=0.12, ceiling=0.999)
"""20,000 test signals of ten classes: a guess is right in 10 %, with a standard error of 0.2 %."""

DIGITS: Final = Instrument(floor=0.15, ceiling=0.999)
"""600 test digits of ten classes: a guess is right in 10 %, with a standard error of 1.2 %."""

TRAIN_LOSS: Final = Instrument(floor=0.0)
STEPS: Final = Instrument(floor=0.0, ceiling=200.0)
"""Steps to a loss, of at most 40 epochs of 5: a run that never gets there sits at the ceiling."""

SHARE: Final = Instrument(floor=0.0, ceiling=1.0)
DIVERGED: Final = Instrument(floor=0.0, ceiling=1.0, ties=True)
BYTES: Final = Instrument(floor=0.0, ceiling=math.log(256))
"""Loss in nats per byte; a guess has ln 256."""

ESCAPE: Final = Instrument(floor=0.0, ceiling=math.log10(0.9 * 30_000))
"""Mean steps of at most 30,000: near that, most particles have not left, and the mean says no more."""

COUNT: Final = Instrument(floor=0.0, ties=True)
EXACT: Final = Instrument(ties=True)
"""Counted passes and processor times: no bound hides a difference."""

DROPS: Final = Instrument(floor=0.0)
COSINE: Final = Instrument(floor=-1.0, ceiling=1.0)
PATH: Final = Instrument(floor=-1.0, ceiling=1.0)
TAU: Final = Instrument(floor=-1.0, ceiling=1.0, ties=True)
PERTURBATION: Final = Instrument(floor=0.0, ceiling=1.0)


def log_measure(floor: float, *, equal_loss: bool = True, learned: float | None = LEARNED) -> Instrument:
    """Return the instrument of a curvature, sharpness or roughness on a logarithmic scale."""
    return Instrument(floor=floor, learned=learned, equal_loss=equal_loss)
