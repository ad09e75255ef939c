"""Records by place: one tensor per field, in memory of a device or of the host, or in a file."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import psutil
import torch
from torch import Tensor

from lowland.core.errors import CheckpointError, InputError
from lowland.losses.records import RecordFormat, Records

_HEADER: Final = 4096
_MAGIC: Final = "lowland output memory 1"


class Table:
    """Records in memory; place -1 is read as never written, and what is written there is dropped."""

    def __init__(self, form: RecordFormat, places: int, device: torch.device | str, *, pinned: bool = False) -> None:
        pinned = pinned and torch.cuda.is_available()
        self.form = form  # a last record takes what is to be dropped: to leave it out would wait for the device
        self.fields: Records = {
            name: torch.zeros((places + 1, *shape), dtype=kind, device=device, pin_memory=pinned)
            for name, (kind, shape) in form.fields.items()
        }

    def __len__(self) -> int:
        return len(self.fields["stamp"]) - 1

    def read(self, places: Tensor) -> Records:
        """Return the records at places, on the device of the places."""
        here = places.to(self.fields["stamp"].device)
        kept = {name: field.index_select(0, here.clamp(min=0)) for name, field in self.fields.items()}
        kept["stamp"] = torch.where(here >= 0, kept["stamp"], 0)
        return {name: value.to(places.device, non_blocking=True) for name, value in kept.items()}

    def write(self, places: Tensor, records: Records) -> None:
        """Write records, each place at most once."""
        here = places.to(self.fields["stamp"].device)
        here = torch.where(here >= 0, here, len(self))
        for name, field in self.fields.items():
            field.index_copy_(0, here, records[name].to(field.device))

    def grow(self, places: int) -> None:
        """Make room for more places; what is there stays."""
        missing = places - len(self)
        if missing > 0:
            self.fields = {
                name: torch.cat([field[:-1], field.new_zeros((missing + 1, *field.shape[1:]))])
                for name, field in self.fields.items()
            }

    def to(self, device: torch.device) -> None:
        """Keep records on a device from now on."""
        self.fields = {name: field.to(device) for name, field in self.fields.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return the fields."""
        return dict(self.fields)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over fields."""
        self.fields = {name: state[name].to(field.device, copy=True) for name, field in self.fields.items()}


class FileTable(Table):
    """Records in a file, that every process reads and writes at their places by system calls.

    A mapping would count every page that was ever touched as resident, and end in a signal where a disk is full. A
    header names the layout, this memory's own key, and the last epoch that was begun.
    """

    def __init__(
        self, path: Path, form: RecordFormat, places: int, layout: Mapping[str, Any], *, key: str | None = None
    ) -> None:
        self.path, self.form, self.layout = path, form, dict(layout)
        kinds = [(name, str(kind).removeprefix("torch."), shape) for name, (kind, shape) in form.fields.items()]
        self._record = np.dtype(kinds)  # side by side, as files of 0.1.0 have them
        if key is None:
            self._refuse_foreign()
            self.key = secrets.token_hex(8)
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("w+b", buffering=0)
            self.grow(places)
            self.begun = -1
            return
        self.key = key
        header = self._header()
        if header is None or header["key"] != key or header["layout"] != self.layout:
            said = f"the file {path} is not the output memory that the checkpoint belongs to"
            raise CheckpointError(f"{said}; nothing was loaded")
        self._file = path.open("r+b", buffering=0)

    @property
    def begun(self) -> int:
        """The last epoch that was begun, by whichever process; -1 for none."""
        header = self._header()
        return -1 if header is None else int(header["begun"])

    @begun.setter
    def begun(self, epoch: int) -> None:
        text = json.dumps({"magic": _MAGIC, "key": self.key, "layout": self.layout, "begun": epoch})
        os.pwrite(self._file.fileno(), text.encode().ljust(_HEADER), 0)

    def read(self, places: Tensor) -> Records:
        """Return records; see `Table`."""
        found = np.zeros(len(places), self._record)
        for row, position in self._positions(found, places):
            os.preadv(self._file.fileno(), [row.data], position)
        fields = {name: np.ascontiguousarray(found[name]) for name in self.form.fields}
        return {name: torch.from_numpy(values).to(places.device) for name, values in fields.items()}

    def write(self, places: Tensor, records: Records) -> None:
        """Write records; see `Table`."""
        given = np.zeros(len(places), self._record)
        for name, value in records.items():
            given[name] = value.cpu().numpy()
        for row, position in self._positions(given, places):
            os.pwrite(self._file.fileno(), row, position)

    def grow(self, places: int) -> None:
        """Make room; see `Table`."""
        size = _HEADER + places * self._record.itemsize
        if os.fstat(self._file.fileno()).st_size < size:
            os.ftruncate(self._file.fileno(), size)

    def to(self, device: torch.device) -> None:
        """Stay where it is; see `Table`."""

    def state_dict(self) -> dict[str, Any]:
        """Return the file's key: records stay in the file."""
        return {"key": self.key}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The file was opened by its key."""
        assert state["key"] == self.key

    def _positions(self, records: Any, places: Tensor) -> Iterator[tuple[Any, int]]:
        rows = records.view(np.uint8).reshape(len(records), -1)
        for row, place in zip(rows, places.tolist(), strict=True):
            if place >= 0:
                yield row, _HEADER + place * self._record.itemsize

    def _header(self) -> dict[str, Any] | None:
        try:
            with self.path.open("rb") as file:
                header = json.loads(file.read(_HEADER))
        except (OSError, ValueError):
            return None
        return header if isinstance(header, dict) and header.get("magic") == _MAGIC else None

    def _refuse_foreign(self) -> None:
        if self.path.is_dir() or (self.path.exists() and self.path.stat().st_size and self._header() is None):
            rule = "must be free, or hold an earlier output memory"
            raise InputError("path", rule, str(self.path), "give another file name")


def available_bytes(device: torch.device, path: Path | None) -> int:
    """Return how much room there is."""
    if path is not None:
        folder = next(parent for parent in path.absolute().parents if parent.exists())
        taken = path.stat().st_blocks * 512 if path.is_file() else 0
        return shutil.disk_usage(folder).free + taken
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return min(int(psutil.virtual_memory().available), _group_room())


def _group_room() -> int:
    # a container's limit may be far below the machine's memory
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
        lines = Path("/sys/fs/cgroup/memory.stat").read_text().splitlines()
        cached = next(int(line.split()[1]) for line in lines if line.startswith("inactive_file"))
        return 2**63 if limit == "max" else int(limit) - used + cached
    except (OSError, ValueError, StopIteration):
        return 2**63
