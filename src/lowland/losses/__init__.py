"""Losses that lead training to flat minima; they nest, and work with any optimizer."""

from lowland.core.names import LOSSES as METHODS
from lowland.core.names import RESHAPERS
from lowland.losses.base import Plan, TrainingLoss
from lowland.losses.controls import Replayed, ScaledDecay, learning_rate_factor
from lowland.losses.custom import Custom, linear_exponential, linear_quadratic
from lowland.losses.llr import LLR, measure_initial_loss
from lowland.losses.memory import OutputMemory, memory_bytes
from lowland.losses.mesa import MESA
from lowland.losses.multipliers import Multipliers, slope_over_losses
from lowland.losses.reshapers import Arctangent, Cyclic, LinearWindow, LogExponential, Reshaper, Sech, ShiftedBump
from lowland.losses.saf import SAF
from lowland.losses.schedule import ActiveEpochs

__all__ = [
    "METHODS",
    "RESHAPERS",
    # the contract
    "TrainingLoss",
    "ActiveEpochs",
    "Plan",
    # reshaped losses
    "LLR",
    "measure_initial_loss",
    "Reshaper",
    "Sech",
    "ShiftedBump",
    "Arctangent",
    "LogExponential",
    "LinearWindow",
    "Cyclic",
    "Custom",
    "linear_quadratic",
    "linear_exponential",
    # trajectory losses
    "SAF",
    "MESA",
    "OutputMemory",
    "memory_bytes",
    # what they did, and their controls
    "Multipliers",
    "slope_over_losses",
    "Replayed",
    "ScaledDecay",
    "learning_rate_factor",
]
