"""Loss landscapes: lines and planes through the weights, and what a risk looks like on them."""

from lowland.landscape.between import eigenvector_plane, line_between, plane_through
from lowland.landscape.curve import annealed, curve
from lowland.landscape.curves import Curve
from lowland.landscape.evaluate import evaluate
from lowland.landscape.film import film
from lowland.landscape.grid import Grid, grid
from lowland.landscape.lora import lora_plane
from lowland.landscape.match import Matching, match_weights
from lowland.landscape.normalize import normalize
from lowland.landscape.plane import Plane, hdf5_plane, random_line, random_plane, user_plane
from lowland.landscape.probes import GradientNorm, Probe
from lowland.landscape.tolerance import Tolerance
from lowland.landscape.trajectory import grid_around, pca_plane, project_trajectory
from lowland.results.bottleneck import bottleneck
from lowland.results.geometry import bands, barrier, basin_width, central_curvature, numbers, roughness
from lowland.results.merge_trees import Distance, MergeTree, distance, merge_tree
from lowland.results.topology import Basin, basins, diagram
from lowland.results.ways import CurveShape, ways

__all__ = [
    # where
    "grid",
    "Grid",
    "Plane",
    "random_plane",
    "random_line",
    "line_between",
    "plane_through",
    "curve",
    "Curve",
    "CurveShape",
    "annealed",
    "eigenvector_plane",
    "pca_plane",
    "lora_plane",
    "user_plane",
    "hdf5_plane",
    "normalize",
    "match_weights",
    "Matching",
    # what
    "evaluate",
    "film",
    "Tolerance",
    "GradientNorm",
    "Probe",
    # paths
    "project_trajectory",
    "grid_around",
    # numbers
    "numbers",
    "ways",
    "bands",
    "central_curvature",
    "basin_width",
    "barrier",
    "roughness",
    # basins
    "merge_tree",
    "MergeTree",
    "distance",
    "Distance",
    "basins",
    "Basin",
    "diagram",
    "bottleneck",
]
