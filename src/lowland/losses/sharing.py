"""Past outputs among processes: every one finds the samples that it meets next.

A sampler that shuffles gives a sample to another process in each epoch, so that a table per process would hold the
right past output for one sample in `world` only. Here every sample has an owner (its row modulo `world`). At the
boundary of two epochs each process sends what it has recorded to the owners, and asks them for what it will meet: two
exchanges an epoch, none in a step.

A sample that is met more than once in an epoch (samplers pad) keeps the output that comes last in the order (position
in a process's epoch, rank): the last one of a single process that runs the same global batches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import torch
import torch.distributed as dist
from torch import Tensor

from lowland.losses.tables import TensorTable

_CHUNK: Final = 64 << 20
"""Bytes of rows that are on their way at a time."""


def rank_and_world() -> tuple[int, int]:
    """Return this process's number and how many there are."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def last_of_each(rows: Tensor) -> Tensor:
    """Replace all but the last occurrence of every row by -1."""
    ordered, order = rows.sort(stable=True)
    last = torch.ones_like(ordered, dtype=torch.bool)
    last[:-1] = ordered[1:] != ordered[:-1]
    kept = torch.where(last, ordered, -1)
    return torch.empty_like(rows).index_copy_(0, order, kept)


class Exchange:
    """The rows of one process: those it owns, those it needs in this epoch, and those it records."""

    def __init__(
        self,
        count: int,
        row_bytes: int,
        look_back: int,
        plan: Callable[[int], Tensor] | None,
        device: torch.device,
        *,
        pinned: bool,
    ) -> None:
        self.world = rank_and_world()[1]
        self.count, self.row_bytes, self.plan = count, row_bytes, plan
        self.look_back, self.slots = look_back, look_back + 1
        self.device, self.pinned = device, pinned
        self.owned = TensorTable(-(-count // self.world) * self.slots, row_bytes, device, pinned=pinned)
        self.rows = torch.zeros(0, dtype=torch.int64)  # that this process meets in `epoch`, ascending
        self.needed = TensorTable(0, row_bytes, device)
        self.recorded = TensorTable(0, row_bytes, device)
        self.order = torch.zeros(0, dtype=torch.int64)  # of recording, per row; -1 for not recorded
        self.passed = 0
        self.epoch: int | None = None
        self.reading = False

    def begin(self, epoch: int, *, recording: bool, reading: bool) -> None:
        """Hand in what was recorded, and fetch what the epoch needs; called by all processes together."""
        if self.epoch is not None and self.epoch != epoch:
            self._hand_in(self.epoch)
        going_on = self.epoch == epoch
        if not going_on:
            rows = torch.arange(self.count) if self.plan is None else torch.unique(self.plan(epoch).cpu())
            self.rows = rows.to(self.device)
            size = len(rows) if recording else 0
            self.recorded = TensorTable(size, self.row_bytes, self.device, pinned=self.pinned)
            self.order = torch.full((size,), -1, dtype=torch.int64, device=self.device)
            self.passed, self.epoch = 0, epoch if recording else None
        self.reading = reading
        self.needed = TensorTable(len(self.rows) if reading else 0, self.row_bytes, self.device, pinned=self.pinned)
        if reading:
            self._fetch(epoch - self.look_back)

    def read(self, rows: Tensor) -> Tensor:
        """Return rows of the epoch that is looked back to."""
        place = self._place(rows) if self.reading else torch.full_like(rows, -1)
        return self.needed.read(place)

    def write(self, rows: Tensor, data: Tensor) -> None:
        """Record rows of the epoch that runs."""
        place = self._place(rows).to(self.device)
        self.recorded.write(place, data)
        numbers = torch.arange(self.passed, self.passed + len(rows), device=self.device)
        size = len(self.order)
        padded = torch.cat([self.order, self.order.new_zeros(1)])
        self.order = padded.index_copy_(0, torch.where(place >= 0, place, size), numbers)[:-1]
        self.passed += len(rows)

    def unplanned(self, rows: Tensor) -> Tensor:
        """Tell which existing rows the plan did not name."""
        return (rows >= 0) & (self._place(rows) < 0)

    def grow(self, count: int) -> None:
        """All samples are known from the start; see `lowland.losses.epoch_ring.EpochRing`."""
        del count

    def to(self, device: torch.device) -> None:
        """Move what is held to a device."""
        self.device = device
        self.rows, self.order = self.rows.to(device), self.order.to(device)
        for table in (self.owned, self.needed, self.recorded):
            table.data = table.data.to(device)

    def state_dict(self) -> dict[str, Any]:
        """Return what this process holds."""
        return {
            "owned": self.owned.data,
            "rows": self.rows,
            "recorded": self.recorded.data,
            "order": self.order,
            "passed": self.passed,
            "epoch": self.epoch,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned on this rank; `begin` must follow."""
        self.owned.data = state["owned"].to(self.device, copy=True)
        self.rows = state["rows"].to(self.device, copy=True)
        self.recorded.data = state["recorded"].to(self.device, copy=True)
        self.order = state["order"].to(self.device, copy=True)
        self.passed, self.epoch = state["passed"], state["epoch"]

    def _place(self, rows: Tensor) -> Tensor:
        known = self.rows.to(rows.device)
        if not len(known):
            return torch.full_like(rows, -1)
        place = torch.searchsorted(known, rows).clamp(max=len(known) - 1)
        return torch.where(known[place] == rows, place, -1)

    def _chunks(self) -> list[tuple[int, int]]:
        # ranges of rows, the same on every process, so that all copies of a row travel together
        step = max(1, _CHUNK // self.row_bytes)
        return [(start, min(start + step, self.count)) for start in range(0, self.count, step)]

    def _hand_in(self, epoch: int) -> None:
        filled = self.order >= 0
        for start, stop in self._chunks():
            place = (filled & (self.rows >= start) & (self.rows < stop)).nonzero()[:, 0]
            rows = self.rows[place]
            (rows, order, data), _ = _to_owners(rows, [rows, self.order[place], self.recorded.read(place)])
            sequence = order.argsort(stable=True)  # what came from lower ranks stands first among equals
            rows, data = last_of_each(rows[sequence]), data[sequence]
            slot = torch.div(rows, self.world, rounding_mode="floor") * self.slots + epoch % self.slots
            self.owned.write(torch.where(rows >= 0, slot, -1), data)

    def _fetch(self, epoch: int) -> None:
        for start, stop in self._chunks():
            place = ((self.rows >= start) & (self.rows < stop)).nonzero()[:, 0]
            asked = self.rows[place]
            (rows,), counts = _to_owners(asked, [asked])
            slot = torch.div(rows, self.world, rounding_mode="floor") * self.slots + epoch % self.slots
            answers = _back(self.owned.read(slot), counts)
            by_owner = (asked % self.world).argsort(stable=True)
            self.needed.write(place[by_owner], answers.to(self.device))


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


def _to_owners(rows: Tensor, payloads: list[Tensor]) -> tuple[list[Tensor], tuple[list[int], list[int]]]:
    # sends entry i to the owner of rows[i]; returns what arrived, by rank, and how much went and came
    wire, world = _wire_device(), dist.get_world_size()
    owner = rows % world
    order = owner.argsort(stable=True)
    sent = torch.bincount(owner, minlength=world).to(wire)
    came = torch.empty_like(sent)
    dist.all_to_all_single(came, sent)
    counts = (sent.tolist(), came.tolist())
    return [_swap(payload[order], *counts) for payload in payloads], counts


def _back(payload: Tensor, counts: tuple[list[int], list[int]]) -> Tensor:
    return _swap(payload, counts[1], counts[0])


def _swap(payload: Tensor, sent: list[int], came: list[int]) -> Tensor:
    wire = payload.to(_wire_device()).contiguous()
    result = wire.new_empty((sum(came), *wire.shape[1:]))
    dist.all_to_all_single(result, wire, came, sent)
    return result.to(payload.device)
