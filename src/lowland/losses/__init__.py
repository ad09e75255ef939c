"""Losses that lead training to flat minima; they nest, and work with any optimizer."""

from lowland.losses.base import TrainingLoss
from lowland.losses.llr import LLR, measure_initial_loss
from lowland.losses.multipliers import Multipliers
from lowland.losses.reshapers import Reshaper, Sech
from lowland.losses.schedule import ActiveEpochs

__all__ = [
    "ActiveEpochs",
    "LLR",
    "Multipliers",
    "Reshaper",
    "Sech",
    "TrainingLoss",
    "measure_initial_loss",
]
