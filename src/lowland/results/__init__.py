"""Results on disk: runs, and surfaces, trajectories and curvature as labelled Datasets; no torch."""

from lowland.results.dataset import SurfaceWriter, open, save, writer
from lowland.results.frames import to_csv, to_frame, to_parquet
from lowland.results.hdf5 import read_directions, read_li_hdf5, write_directions, write_li_hdf5
from lowland.results.matched import at_matched_loss, matched_steps
from lowland.results.run import Run
from lowland.results.runs import Runs
from lowland.results.snapshots import SnapshotReader, SnapshotWriter
from lowland.results.source import Source
from lowland.results.spec import Spec

__all__ = [
    "Run",
    "Runs",
    "Spec",
    "Source",
    "open",
    "save",
    "writer",
    "SurfaceWriter",
    "to_frame",
    "to_csv",
    "to_parquet",
    "at_matched_loss",
    "matched_steps",
    "SnapshotReader",
    "SnapshotWriter",
    "read_li_hdf5",
    "write_li_hdf5",
    "read_directions",
    "write_directions",
]
