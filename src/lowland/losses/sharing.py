"""Past outputs among processes: every one finds the samples that it meets next.

A sampler that shuffles gives a sample to another process in each epoch, so that a table per process would hold the
right past output for one sample in `world` only. Here every sample has an owner (its row modulo `world`). At the
boundary of two epochs each process sends what it has recorded to the owners, and asks them for what it will meet: two
exchanges an epoch, none in a step.

A sample that is met more than once in an epoch (samplers pad) keeps the output that comes last in the order (position
in a process's epoch, rank): the last one of a single process that runs the same global batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import torch
import torch.distributed as dist
from torch import Tensor

from lowland.losses.records import RecordFormat, Records, last_of_each, place_in
from lowland.losses.tables import Table

_CHUNK: Final = 64 << 20
"""Bytes of rows that are on their way at a time."""


def rank_and_world() -> tuple[int, int]:
    """Return this process's number and how many there are."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


class Exchange:
    """The records of one process: those it owns, those it needs in this epoch, and those it makes."""

    def __init__(
        self,
        count: int,
        form: RecordFormat,
        look_back: int,
        plan: Callable[[int], Tensor] | None,
        device: torch.device,
        *,
        pinned: bool,
    ) -> None:
        self.world = rank_and_world()[1]
        self.count, self.form, self.plan = count, form, plan
        self.look_back, self.slots = look_back, look_back + 1
        self.device, self.pinned = device, pinned
        self.rows = torch.zeros(0, dtype=torch.int64)  # that this process meets in `epoch`, ascending
        self.owned = self._table(-(-count // self.world) * self.slots)
        self.needed, self.recorded = self._table(0), self._table(0)
        self.order = torch.zeros(0, dtype=torch.int64)  # of recording, per row; -1 for not recorded
        self.passed = 0
        self.epoch: int | None = None
        self.reading = False

    def begin(self, epoch: int, *, recording: bool, reading: bool) -> None:
        """Hand in what was recorded, and fetch what the epoch needs; called by all processes together."""
        if self.epoch is not None and self.epoch != epoch:
            self._hand_in(self.epoch)
        if self.epoch != epoch:
            rows = torch.arange(self.count) if self.plan is None else torch.unique(self.plan(epoch).cpu())
            self.rows = rows.to(self.device)
            self.recorded = self._table(len(rows) if recording else 0)
            self.order = torch.full((len(self.recorded),), -1, dtype=torch.int64, device=self.device)
            self.passed, self.epoch = 0, epoch if recording else None
        self.reading = reading
        self.needed = self._table(len(self.rows) if reading else 0)
        if reading:
            self._fetch(epoch - self.look_back)

    def read(self, rows: Tensor) -> Records:
        """Return the records of the epoch that is looked back to."""
        return self.needed.read(self.place(rows) if self.reading else torch.full_like(rows, -1))

    def write(self, rows: Tensor, records: Records) -> None:
        """Take records of the epoch that runs."""
        place = self.place(rows).to(self.device)
        self.recorded.write(place, records)
        numbers = torch.arange(self.passed, self.passed + len(rows), device=self.device)
        padded = torch.cat([self.order, self.order.new_zeros(1)])
        self.order = padded.index_copy_(0, torch.where(place >= 0, place, len(self.order)), numbers)[:-1]
        self.passed += len(rows)

    def to(self, device: torch.device) -> None:
        """Move what is held to a device."""
        self.device, self.rows, self.order = device, self.rows.to(device), self.order.to(device)
        for table in (self.owned, self.needed, self.recorded):
            table.to(device)

    def state_dict(self) -> dict[str, Any]:
        """Return what this process holds."""
        tables = {"owned": self.owned.state_dict(), "recorded": self.recorded.state_dict()}
        return {**tables, "rows": self.rows, "order": self.order, "passed": self.passed, "epoch": self.epoch}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned on this rank; `begin` must follow."""
        self.owned.load_state_dict(state["owned"])
        self.recorded.load_state_dict(state["recorded"])
        self.rows, self.order = (state[name].to(self.device, copy=True) for name in ("rows", "order"))
        self.passed, self.epoch = state["passed"], state["epoch"]

    def place(self, rows: Tensor) -> Tensor:
        """Return where rows stand among those that this process meets; -1 for others."""
        return place_in(self.rows.to(rows.device), rows)

    def _table(self, places: int) -> Table:
        return Table(self.form, places, self.device, pinned=self.pinned)

    def _slot(self, rows: Tensor, epoch: int) -> Tensor:
        return torch.div(rows, self.world, rounding_mode="floor") * self.slots + epoch % self.slots

    def _chunks(self) -> Iterator[Tensor]:
        # places of this process's rows in ranges that are the same everywhere, so that copies of a row travel together
        step = max(1, _CHUNK // self.form.bytes)
        for start in range(0, self.count, step):
            yield ((self.rows >= start) & (self.rows < start + step)).nonzero()[:, 0]

    def _hand_in(self, epoch: int) -> None:
        for place in self._chunks():
            place = place[self.order[place] >= 0]
            sent = {"row": self.rows[place], "order": self.order[place], **self.recorded.read(place)}
            came, _ = _to_owners(sent["row"], sent)
            sequence = came.pop("order").argsort(stable=True)  # of equal rows, what came from lower ranks is first
            rows = last_of_each(came.pop("row")[sequence])
            records = {name: value[sequence] for name, value in came.items()}
            self.owned.write(torch.where(rows >= 0, self._slot(rows, epoch), -1), records)

    def _fetch(self, epoch: int) -> None:
        for place in self._chunks():
            asked = self.rows[place]
            came, (sent, got) = _to_owners(asked, {"row": asked})
            found = self.owned.read(self._slot(came["row"], epoch))
            answers = {name: _swap(value, got, sent) for name, value in found.items()}
            self.needed.write(place[(asked % self.world).argsort(stable=True)], answers)


def yields_to_others(rows: Tensor, count: int) -> Tensor:
    """Tell, for a table that all processes write to, which rows another process will write after this one."""
    rank, world = rank_and_world()
    mine = torch.full((count,), -1, dtype=torch.int64)
    mine.scatter_reduce_(0, rows.cpu(), torch.arange(len(rows)) * world + rank, reduce="amax")
    last = mine.to(_wire_device()).clone()
    dist.all_reduce(last, op=dist.ReduceOp.MAX)
    return (last.cpu() > mine) & (mine >= 0)


def _wire_device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")


def _to_owners(rows: Tensor, payload: Records) -> tuple[Records, tuple[list[int], list[int]]]:
    """Send entry i of all values to the owner of rows[i]; return what came, by rank, and how much went and came."""
    wire, world = _wire_device(), dist.get_world_size()
    owner = rows % world
    order = owner.argsort(stable=True)
    sent = torch.bincount(owner, minlength=world).to(wire)
    came = torch.empty_like(sent)
    dist.all_to_all_single(came, sent)
    counts = (sent.tolist(), came.tolist())
    return {name: _swap(value[order], *counts) for name, value in payload.items()}, counts


def _swap(payload: Tensor, sent: list[int], came: list[int]) -> Tensor:
    wire = payload.to(_wire_device()).contiguous()
    result = wire.new_empty((sum(came), *wire.shape[1:]))
    dist.all_to_all_single(result, wire, came, sent)
    return result.to(payload.device)
