"""A ring of epochs over a table: where the record of a sample and an epoch stands."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lowland.core.errors import CheckpointError
from lowland.losses.records import Records
from lowland.losses.sharing import rank_and_world, yields_to_others
from lowland.losses.tables import FileTable, Table


class EpochRing:
    """Records by row, for the epoch that runs (written) and the one looked back to (read)."""

    def __init__(self, table: Table, count: int, look_back: int, plan: Callable[[int], Tensor] | None) -> None:
        self.table, self.count, self.plan = table, count, plan
        self.look_back, self.slots = look_back, look_back + 1
        self.epoch = 0
        self.yields: Tensor | None = None  # rows of a shared file that another process writes after this one

    def begin(self, epoch: int, *, recording: bool, reading: bool) -> None:
        """Begin an epoch, or go on with it after a resume; on all processes together."""
        del reading
        self.epoch, self.yields = epoch, None
        if not isinstance(self.table, FileTable):
            return
        begun, (rank, world) = self.table.begun, rank_and_world()
        if begun > epoch:
            raise CheckpointError(
                f"the output memory {self.table.path} has gone on to epoch {begun} and lost what epoch {epoch} needs; "
                "resume from a later checkpoint, or start anew"
            )
        if world > 1:
            dist.barrier()  # all have read the header, and all records of the last epoch are written
            if recording and self.plan is not None:
                self.yields = yields_to_others(self.plan(epoch), self.count)
        if rank == 0:
            self.table.begun = epoch

    def read(self, rows: Tensor) -> Records:
        """Return the records of the epoch looked back to; stamp 0 where rows is -1."""
        return self.table.read(self._places(rows, self.epoch - self.look_back))

    def write(self, rows: Tensor, records: Records) -> None:
        """Write records of the epoch that runs, each at most once; those at -1 are dropped."""
        if self.yields is not None:
            rows = rows.cpu()
            rows = torch.where((rows >= 0) & self.yields[rows.clamp(min=0)], -1, rows)
        self.table.write(self._places(rows, self.epoch), records)

    def to(self, device: torch.device) -> None:
        """Keep records on a device from now on."""
        self.table.to(device)

    def state_dict(self) -> dict[str, Any]:
        """Return what this process holds."""
        return self.table.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned; `begin` must follow."""
        self.table.load_state_dict(state)

    def _places(self, rows: Tensor, epoch: int) -> Tensor:
        return torch.where(rows >= 0, rows * self.slots + epoch % self.slots, -1)
