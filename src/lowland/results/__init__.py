"""Results on disk: surfaces, trajectories and curvature as labelled Datasets, snapshots of training; no torch."""

from lowland.results.dataset import MemoryWriter, SurfaceWriter, ZarrWriter, open, save, writer
from lowland.results.hdf5 import read_directions, read_li_hdf5, write_directions, write_li_hdf5
from lowland.results.snapshots import SnapshotReader, SnapshotWriter

__all__ = [
    "open",
    "save",
    "writer",
    "SurfaceWriter",
    "MemoryWriter",
    "ZarrWriter",
    "SnapshotReader",
    "SnapshotWriter",
    "read_li_hdf5",
    "write_li_hdf5",
    "read_directions",
    "write_directions",
]
