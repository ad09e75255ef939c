"""Optimizer wrappers: the sharpness-aware family, Lookahead, and weight averaging, right in every training loop."""

from lowland.core.names import OPTIMIZERS as METHODS
from lowland.optim.asam import ASAM
from lowland.optim.averaging import EMA, SWA
from lowland.optim.flat_lora import lora_noise
from lowland.optim.fsam import FSAM
from lowland.optim.gsam import GSAM
from lowland.optim.late import LateSAM
from lowland.optim.lookahead import Lookahead
from lowland.optim.looksam import LookSAM
from lowland.optim.merging import merge, merge_weights
from lowland.optim.msam import MSAM
from lowland.optim.norms import norm_parameters
from lowland.optim.options import AscentOptions
from lowland.optim.parts import Method, Part
from lowland.optim.phases import Phase
from lowland.optim.sala import SALA
from lowland.optim.sam import SAM
from lowland.optim.sampa import SAMPa
from lowland.optim.wrapper import Ascent, Wrapper
from lowland.optim.wsam import WSAM

__all__ = ["METHODS", "SAM", "ASAM", "GSAM", "LookSAM", "FSAM", "WSAM", "LateSAM", "SAMPa", "MSAM"]
__all__ += ["Lookahead", "SALA", "EMA", "SWA", "Ascent", "AscentOptions", "Method", "Part", "Phase"]
__all__ += ["Wrapper", "norm_parameters", "lora_noise", "merge", "merge_weights"]
