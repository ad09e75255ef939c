"""Training: the loop on Lightning Fabric, its hooks, checkpoints and numbers."""

from lowland.training.checkpoint import CheckpointFolder, read_weights
from lowland.training.critical_curve import CriticalCurve
from lowland.training.curvature_curve import CurvatureCurve
from lowland.training.fit import fit
from lowland.training.hooks import FitState, Hook, Snapshots
from lowland.training.result import FitResult
from lowland.training.schedule import Schedule
from lowland.training.setup import why_fixed

__all__ = ["fit", "FitResult", "Schedule", "why_fixed", "Hook", "FitState", "Snapshots"]
__all__ += ["CurvatureCurve", "CriticalCurve", "CheckpointFolder", "read_weights"]
