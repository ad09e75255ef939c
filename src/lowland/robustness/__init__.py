"""Robustness of a checkpoint: a card of what rounding, noise, training on and merging do, beside the prediction.

Also by themselves: attacks on a classifier by foolbox, the radius at which it breaks, noise, and rounded weights.
"""

from lowland.core.settings import RobustnessOptions
from lowland.robustness.attacks import LLR_EPSILONS, adversarial
from lowland.robustness.card import card, outcomes
from lowland.robustness.noise import noise
from lowland.robustness.paired import Outcome
from lowland.robustness.pixels import Robustness
from lowland.robustness.radius import median_perturbation, telling_epsilon
from lowland.robustness.rounding import rounded

__all__ = ["LLR_EPSILONS", "Outcome", "Robustness", "RobustnessOptions", "adversarial", "card"]
__all__ += ["median_perturbation", "noise", "outcomes", "rounded", "telling_epsilon"]
