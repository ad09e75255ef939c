"""Results on disk: runs, and surfaces, trajectories and curvature as labelled Datasets; no torch."""

from lowland.results.bottleneck import bottleneck
from lowland.results.dataset import SurfaceWriter, open, save, writer
from lowland.results.frames import to_csv, to_frame, to_parquet
from lowland.results.hdf5 import read_directions, read_li_hdf5, write_directions, write_li_hdf5
from lowland.results.matched import LOSS_RATIO, at_matched_loss, comparable, matched_steps
from lowland.results.merge_trees import Distance, MergeTree, distance, merge_tree
from lowland.results.run import COUNTED, PASSES, Run
from lowland.results.runs import Runs
from lowland.results.snapshots import SnapshotReader, SnapshotWriter
from lowland.results.source import Source
from lowland.results.spec import Spec
from lowland.results.topology import Basin, basins, diagram

__all__ = ["Run", "PASSES", "COUNTED", "merge_tree", "MergeTree", "distance", "Distance", "basins"]
__all__ += ["Basin", "diagram", "bottleneck", "Runs", "Spec", "Source", "open", "save", "writer"]
__all__ += ["SurfaceWriter", "to_frame", "to_csv", "to_parquet", "at_matched_loss", "matched_steps"]
__all__ += ["comparable", "LOSS_RATIO", "SnapshotReader", "SnapshotWriter", "read_li_hdf5"]
__all__ += ["write_li_hdf5", "read_directions", "write_directions"]
