"""Results on disk: snapshots, surfaces, trajectories, curvature; imports no torch."""

from lowland.store.snapshots import SnapshotReader, SnapshotWriter

__all__ = ["SnapshotReader", "SnapshotWriter"]
