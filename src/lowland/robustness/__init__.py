"""Robustness of a classifier: adversarial attacks by foolbox, the radius at which a classifier breaks, and noise."""

from lowland.robustness.attacks import LLR_EPSILONS, adversarial
from lowland.robustness.noise import noise
from lowland.robustness.pixels import Robustness
from lowland.robustness.radius import median_perturbation, telling_epsilon

__all__ = ["LLR_EPSILONS", "Robustness", "adversarial", "median_perturbation", "noise", "telling_epsilon"]
