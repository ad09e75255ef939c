"""Optimizer wrappers: the sharpness-aware family, Lookahead, and weight averaging, right in every training loop."""

from lowland.optim.asam import ASAM
from lowland.optim.averaging import EMA, SWA
from lowland.optim.gsam import GSAM
from lowland.optim.lookahead import Lookahead
from lowland.optim.looksam import LookSAM
from lowland.optim.msam import MSAM
from lowland.optim.norms import norm_parameters
from lowland.optim.options import AscentOptions
from lowland.optim.parts import Method, Part
from lowland.optim.phases import Phase
from lowland.optim.registry import METHODS
from lowland.optim.sala import SALA
from lowland.optim.sam import SAM
from lowland.optim.wrapper import Ascent, Wrapper

__all__ = [
    "METHODS",
    "SAM",
    "ASAM",
    "GSAM",
    "LookSAM",
    "MSAM",
    "Lookahead",
    "SALA",
    "EMA",
    "SWA",
    "Ascent",
    "AscentOptions",
    "Method",
    "Part",
    "Phase",
    "Wrapper",
    "norm_parameters",
]
