"""Every method and every reshaper of this room by the name it has in a file and on the command line."""

from __future__ import annotations

from typing import Final

from lowland.losses.base import TrainingLoss
from lowland.losses.llr import LLR
from lowland.losses.mesa import MESA
from lowland.losses.reshapers import Arctangent, LinearWindow, LogExponential, Reshaper, Sech, ShiftedBump
from lowland.losses.saf import SAF

METHODS: Final[dict[str, type[TrainingLoss]]] = {"llr": LLR, "saf": SAF, "mesa": MESA}
"""Name -> wrapper of a criterion; a new one joins by a word here and a line in the contract suite."""

RESHAPERS: Final[dict[str, type[Reshaper]]] = {
    "sech": Sech,
    "shiftedbump": ShiftedBump,
    "arctangent": Arctangent,
    "logexponential": LogExponential,
    "linearwindow": LinearWindow,
}
"""Name -> reshaper of LLR."""
