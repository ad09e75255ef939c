"""Results on disk: surfaces, trajectories and curvature as labelled Datasets, snapshots of training; no torch."""

from lowland.store.dataset import MemoryWriter, SurfaceWriter, ZarrWriter, open, save, writer
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
]
