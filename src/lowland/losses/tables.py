"""Where rows of bytes are kept: in memory of a device or of the host, or in a file by positioned reads and writes."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import psutil
import torch
from torch import Tensor

from lowland.core.errors import CheckpointError, InputError

_HEADER: Final = 4096
_MAGIC: Final = "lowland output memory 1"


class TensorTable:
    """Rows in one tensor, with a last row that takes what is to be dropped."""

    def __init__(self, positions: int, row_bytes: int, device: torch.device | str, *, pinned: bool = False) -> None:
        pinned = pinned and torch.cuda.is_available()
        self.data = torch.zeros((positions + 1, row_bytes), dtype=torch.uint8, device=device, pin_memory=pinned)

    def read(self, positions: Tensor) -> Tensor:
        """Return the rows at positions (uint8, shape [n, bytes], on the positions' device); zeros at -1."""
        place = positions.to(self.data.device)
        rows = self.data.index_select(0, place.clamp(min=0))
        rows = torch.where((place >= 0)[:, None], rows, torch.zeros_like(rows))
        return rows.to(positions.device, non_blocking=True)

    def write(self, positions: Tensor, rows: Tensor) -> None:
        """Write rows to positions, each position at most once; rows at position -1 are dropped."""
        place = positions.to(self.data.device)
        last = self.data.shape[0] - 1
        self.data.index_copy_(0, torch.where(place >= 0, place, last), rows.to(self.data.device))

    def grow(self, positions: int) -> None:
        """Make room for more positions; what is there stays."""
        missing = positions + 1 - self.data.shape[0]
        if missing > 0:
            more = self.data.new_zeros((missing, self.data.shape[1]))
            self.data = torch.cat([self.data[:-1], more, self.data[-1:]])


class FileTable:
    """Rows in a file, read and written at their positions by system calls."""

    # A memory map would make every page that was ever touched count as resident; so nothing is mapped, and the
    # operating system keeps in its page cache what it has room for. A header names the layout, this memory's
    # own key, and the last epoch that was begun.

    def __init__(
        self, path: Path, positions: int, row_bytes: int, layout: Mapping[str, Any], *, key: str | None = None
    ) -> None:
        self.path, self.row_bytes, self.layout = path, row_bytes, dict(layout)
        if key is None:
            self._refuse_foreign()
            self.key = secrets.token_hex(8)
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
            os.ftruncate(self._file, _HEADER + positions * row_bytes)
            self.begun = -1
        else:
            self.key = key
            header = self._header()
            if header is None or header["key"] != key or header["layout"] != self.layout:
                raise CheckpointError(
                    f"the file {path} is not the output memory that the checkpoint belongs to; nothing was loaded"
                )
            self._file = os.open(path, os.O_RDWR)

    @property
    def begun(self) -> int:
        """The last epoch that was begun, by whichever process; -1 for none."""
        header = self._header()
        return -1 if header is None else int(header["begun"])

    @begun.setter
    def begun(self, epoch: int) -> None:
        text = json.dumps({"magic": _MAGIC, "key": self.key, "layout": self.layout, "begun": epoch})
        os.pwrite(self._file, text.encode().ljust(_HEADER), 0)

    def read(self, positions: Tensor) -> Tensor:
        """Return rows; see `TensorTable`."""
        rows = np.zeros((len(positions), self.row_bytes), dtype=np.uint8)
        for row, position in zip(rows, positions.tolist(), strict=True):
            if position >= 0:
                os.preadv(self._file, [row.data], _HEADER + position * self.row_bytes)
        return torch.from_numpy(rows).to(positions.device)

    def write(self, positions: Tensor, rows: Tensor) -> None:
        """Write rows; see `TensorTable`."""
        for row, position in zip(rows.cpu().numpy(), positions.tolist(), strict=True):
            if position >= 0:
                os.pwrite(self._file, row, _HEADER + position * self.row_bytes)

    def grow(self, positions: int) -> None:
        """Make room; see `TensorTable`."""
        size = _HEADER + positions * self.row_bytes
        if os.fstat(self._file).st_size < size:
            os.ftruncate(self._file, size)

    def close(self) -> None:
        """Close the file; it stays."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __del__(self) -> None:
        if getattr(self, "_file", -1) >= 0:
            self.close()

    def _header(self) -> dict[str, Any] | None:
        try:
            with self.path.open("rb") as file:
                header = json.loads(file.read(_HEADER))
        except (OSError, ValueError):
            return None
        return header if isinstance(header, dict) and header.get("magic") == _MAGIC else None

    def _refuse_foreign(self) -> None:
        if self.path.is_dir() or (self.path.exists() and self.path.stat().st_size and self._header() is None):
            raise InputError(
                "path", "must be free, or hold an earlier output memory", str(self.path), "give another file name"
            )


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
