"""Results on disk: surfaces, trajectories and curvature as labelled Datasets, snapshots of training; no torch."""

from lowland.store.dataset import MemoryWriter, SurfaceWriter, ZarrWriter, open, save, writer
from lowland.store.hdf5 import read_directions, read_surface, write_directions, write_surface
from lowland.store.snapshots import SnapshotReader, SnapshotWriter

__all__ = [
    "open",
    "save",
    "writer",
    "SurfaceWriter",
    "MemoryWriter",
    "ZarrWriter",
    "SnapshotReader",
    "SnapshotWriter",
    "read_surface",
    "write_surface",
    "read_directions",
    "write_directions",
]
