"""Optimizer wrappers: the sharpness-aware family, Lookahead, and weight averaging, right in every training loop."""

from lowland.optim.ascent import Ascent, AscentOptions
from lowland.optim.sam import SAM
from lowland.optim.wrapper import Wrapper

__all__ = ["Ascent", "AscentOptions", "SAM", "Wrapper"]
