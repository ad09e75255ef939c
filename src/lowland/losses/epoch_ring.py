"""A ring of epochs over a table: where the row of a sample and an epoch stands, for one process or a shared file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from lowland.core.errors import CheckpointError
from lowland.losses.sharing import rank_and_world, yields_to_others
from lowland.losses.tables import FileTable, TensorTable


class EpochRing(Protocol):
    """Rows by sample, for the epoch that runs (written) and the one looked back to (read)."""

    def begin(self, epoch: int, *, recording: bool, reading: bool) -> None:
        """Begin an epoch, or go on with it after a resume; on all processes together."""

    def read(self, rows: Tensor) -> Tensor:
        """Return the rows (uint8, shape [n, bytes]) of the epoch looked back to; zeros where rows is -1."""

    def write(self, rows: Tensor, data: Tensor) -> None:
        """Write rows of the epoch that runs, each at most once; those at -1 are dropped."""

    def unplanned(self, rows: Tensor) -> Tensor | None:
        """Tell which rows this process was not to meet; None where it may meet any."""

    def grow(self, count: int) -> None:
        """Make room for more samples."""

    def to(self, device: torch.device) -> None:
        """Keep rows on a device from now on."""

    def state_dict(self) -> dict[str, Any]:
        """Return what this process holds."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned; `begin` must follow."""


class _RingOverTable:
    # what rings over one table share; the methods are described at `EpochRing`

    table: TensorTable | FileTable

    def __init__(self, look_back: int) -> None:
        self.look_back, self.slots = look_back, look_back + 1
        self.epoch = 0

    def read(self, rows: Tensor) -> Tensor:
        return self.table.read(_positions(rows, self.epoch - self.look_back, self.slots))

    def write(self, rows: Tensor, data: Tensor) -> None:
        self.table.write(_positions(rows, self.epoch, self.slots), data)

    def unplanned(self, rows: Tensor) -> None:
        del rows  # any sample may be met

    def grow(self, count: int) -> None:
        self.table.grow(count * self.slots)


class MemoryEpochRing(_RingOverTable):
    """Rows in device or host memory of one process."""

    table: TensorTable

    def __init__(self, count: int, row_bytes: int, look_back: int, device: torch.device, *, pinned: bool) -> None:
        super().__init__(look_back)
        self.table = TensorTable(count * self.slots, row_bytes, device, pinned=pinned)

    def begin(self, epoch: int, *, recording: bool, reading: bool) -> None:
        """Begin an epoch; see `EpochRing`."""
        del recording, reading
        self.epoch = epoch

    def to(self, device: torch.device) -> None:
        """Move the table; see `EpochRing`."""
        self.table.data = self.table.data.to(device)

    def state_dict(self) -> dict[str, Any]:
        """Return the table; see `EpochRing`."""
        return {"table": self.table.data}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a table; see `EpochRing`."""
        self.table.data = state["table"].to(self.table.data.device, copy=True)


class FileEpochRing(_RingOverTable):
    """Rows in one file, that all processes read and write."""

    table: FileTable

    def __init__(
        self,
        path: Path,
        count: int,
        row_bytes: int,
        look_back: int,
        layout: Mapping[str, Any],
        plan: Callable[[int], Tensor] | None,
        *,
        key: str | None = None,
    ) -> None:
        super().__init__(look_back)
        self.count, self.plan = count, plan
        self.rank, self.world = rank_and_world()
        self.yields: Tensor | None = None
        size = count * self.slots
        if key is None and self.world > 1:
            made = [FileTable(path, size, row_bytes, layout).key if self.rank == 0 else None]
            dist.broadcast_object_list(made, src=0)
            key = made[0]
        self.table = FileTable(path, size, row_bytes, layout, key=key)

    def begin(self, epoch: int, *, recording: bool, reading: bool) -> None:
        """Begin an epoch; see `EpochRing`."""
        del reading
        begun = self.table.begun
        if begun > epoch:
            raise CheckpointError(
                f"the output memory {self.table.path} has gone on to epoch {begun} and lost what epoch {epoch} needs; "
                "resume from a later checkpoint, or start anew"
            )
        self.epoch, self.yields = epoch, None
        if self.world > 1:
            dist.barrier()  # all have read the header, and all rows of the last epoch are written
            if recording and self.plan is not None:
                self.yields = yields_to_others(self.plan(epoch), self.count)
        if self.rank == 0:
            self.table.begun = epoch

    def write(self, rows: Tensor, data: Tensor) -> None:
        """Write rows; see `EpochRing`."""
        if self.yields is not None:
            rows = rows.cpu()
            rows = torch.where((rows >= 0) & self.yields[rows.clamp(min=0)], -1, rows)
        super().write(rows, data)

    def to(self, device: torch.device) -> None:
        """Stay where it is; see `EpochRing`."""
        del device

    def state_dict(self) -> dict[str, Any]:
        """Return the file's key: rows stay in the file; see `EpochRing`."""
        return {"key": self.table.key}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The file was opened by its key; see `EpochRing`."""
        assert state["key"] == self.table.key


def _positions(rows: Tensor, epoch: int, slots: int) -> Tensor:
    return torch.where(rows >= 0, rows * slots + epoch % slots, -1)
