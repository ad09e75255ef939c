"""Every method of this room by the name it has in a file and on the command line."""

from __future__ import annotations

from typing import Final

import torch

from lowland.optim.asam import ASAM
from lowland.optim.averaging import EMA, SWA
from lowland.optim.gsam import GSAM
from lowland.optim.lookahead import Lookahead
from lowland.optim.looksam import LookSAM
from lowland.optim.msam import MSAM
from lowland.optim.sala import SALA
from lowland.optim.sam import SAM

__all__ = ["METHODS"]

METHODS: Final[dict[str, type[torch.optim.Optimizer]]] = {
    "sam": SAM,
    "asam": ASAM,
    "gsam": GSAM,
    "looksam": LookSAM,
    "msam": MSAM,
    "lookahead": Lookahead,
    "sala": SALA,
    "ema": EMA,
    "swa": SWA,
}
"""Name -> wrapper of a base optimizer; a new one joins by a line here and one in the contract suite."""
