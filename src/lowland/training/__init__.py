"""Training: the loop on Lightning Fabric, its hooks, checkpoints and numbers."""

from lowland.training.checkpoint import CheckpointFolder, read_weights
from lowland.training.curvature_curve import CurvatureCurve
from lowland.training.fit import FitResult, fit
from lowland.training.hooks import FitState, Hook, Snapshots
from lowland.training.schedule import Schedule
from lowland.training.setup import why_fixed

__all__ = [
    "fit",
    "FitResult",
    "Schedule",
    "why_fixed",
    "Hook",
    "FitState",
    "Snapshots",
    "CurvatureCurve",
    "CheckpointFolder",
    "read_weights",
]
