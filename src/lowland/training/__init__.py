"""Training: the loop on Lightning Fabric, its hooks, checkpoints and numbers."""

from lowland.training.checkpoint import CheckpointFolder, read_weights
from lowland.training.curvature_curve import CurvatureCurve
from lowland.training.fit import FitResult, fit
from lowland.training.hooks import Hook, Run, Snapshots
from lowland.training.metrics import read_metrics
from lowland.training.schedule import Schedule

__all__ = [
    "fit",
    "FitResult",
    "Schedule",
    "Hook",
    "Run",
    "Snapshots",
    "CurvatureCurve",
    "CheckpointFolder",
    "read_weights",
    "read_metrics",
]
