"""Loss landscapes: lines and planes through the weights, and what a risk looks like on them."""

from lowland.landscape.evaluate import evaluate
from lowland.landscape.grid import Grid, grid
from lowland.landscape.normalize import normalize
from lowland.landscape.plane import Plane, random_line, random_plane, user_plane
from lowland.landscape.probes import GradientNorm, Probe
from lowland.landscape.trajectory import grid_around, pca_plane, project_trajectory

__all__ = [
    "evaluate",
    "grid",
    "Grid",
    "Plane",
    "random_line",
    "random_plane",
    "user_plane",
    "pca_plane",
    "project_trajectory",
    "grid_around",
    "normalize",
    "GradientNorm",
    "Probe",
]
