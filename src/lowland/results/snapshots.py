"""Snapshots of the weights during training: one safetensors file each, streamed, never all in memory.

A folder holds ``STEP.safetensors`` for every snapshot and ``index.json``, which is rewritten (atomically) after each
file; a file that the index does not name was cut off by a kill and is written again when the run goes on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from lowland.core.errors import DAMAGED, InputError, StoreError, require, reworded
from lowland.core.schema import plain
from lowland.results.files import make_folder, write_atomically

Array: TypeAlias = NDArray[Any]

_INDEX: Final = "index.json"
_SCHEMA: Final = "lowland.snapshots/1"


class SnapshotWriter:
    """Writes snapshots of named arrays into a folder.

    Writing a step again replaces it, so that a run that goes on from a checkpoint simply repeats its last steps.

    Args:
        folder: Where to; made if missing. An existing folder of snapshots is continued.
        dtype: How floating-point arrays are stored: ``"float32"`` (default) or ``"float16"`` (half the space; how much
            was rounded away is kept with every snapshot). NumPy has no bfloat16: hand such weights over as float32.

    Raises:
        StoreError: If the folder cannot be written, holds snapshots of another type, or is damaged.

    Example:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> SnapshotWriter(folder).write(0, {"weight": np.ones((2, 2), np.float32)}, {"epoch": 0})
        >>> SnapshotReader(folder).read(0)["weight"].sum().item()
        4.0
    """

    def __init__(self, folder: str | Path, dtype: Literal["float16", "float32"] = "float32") -> None:
        require(dtype in ("float16", "float32"), "dtype", 'must be "float16" or "float32"', dtype)
        self.folder, self.dtype = Path(folder).absolute(), dtype  # wherever the process goes later
        self._entries: dict[int, dict[str, Any]] = {}
        if (self.folder / _INDEX).exists():
            index = _read_index(self.folder)
            if index["dtype"] != dtype and index["snapshots"]:
                advice = "go on with that type or choose another folder"
                raise StoreError(f"{self.folder} holds {index['dtype']} snapshots; {advice}")
            self._entries = {int(step): entry for step, entry in index["snapshots"].items()}
        make_folder(self.folder)

    def write(self, step: int, arrays: Mapping[str, Array], info: Mapping[str, Any] | None = None) -> None:
        """Write the weights (and buffers) of a step by name, with plain JSON values `info`; integers stay integers."""
        require(step >= 0, "step", "must not be negative", step)
        stored = {name: self._cast(name, array) for name, array in arrays.items()}
        data = save(stored)
        entry = {"info": plain(info), "rounding": _distance(arrays, stored), "names": list(stored)}
        write_atomically(self.folder / _file(step), data)
        entry["sha256"] = hashlib.sha256(data).hexdigest()
        self._entries[step] = entry
        content = {
            "schema": _SCHEMA,
            "dtype": self.dtype,
            "snapshots": {str(key): self._entries[key] for key in sorted(self._entries)},
        }
        write_atomically(self.folder / _INDEX, json.dumps(content, indent=1).encode())

    def _cast(self, name: str, array: Array) -> Array:
        if not np.issubdtype(array.dtype, np.floating):
            return array.copy(order="C")
        with np.errstate(over="ignore"):
            stored = array.astype(self.dtype, order="C")
        if bool((np.isinf(stored) & np.isfinite(array)).any()):
            largest = float(np.abs(array[np.isfinite(array)]).max())
            rule = f"must hold the values of {name!r} (largest {largest:.3g})"
            raise InputError("dtype", rule, self.dtype, 'use "float32"')
        return stored


class SnapshotReader:
    """Reads the snapshots of a folder of `SnapshotWriter`, one at a time; StoreError where there are none."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).absolute()
        if not (self.folder / _INDEX).exists():
            raise StoreError(f"{self.folder} holds no snapshots ({_INDEX} is missing)")
        index = _read_index(self.folder)
        self.dtype: str = index["dtype"]
        self._entries: dict[int, dict[str, Any]] = {int(s): e for s, e in index["snapshots"].items()}
        self.steps: tuple[int, ...] = tuple(sorted(self._entries))

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[tuple[int, dict[str, Array]]]:
        for step in self.steps:
            yield step, self.read(step)

    def read(self, step: int) -> dict[str, Array]:
        """Read the arrays of one of `steps` by name, in the order and type in which they are stored."""
        entry = self._entry(step)
        path = self.folder / _file(step)
        kinds = (*DAMAGED, SafetensorError)
        with reworded(kinds, lambda why: StoreError(f"the snapshot {path} is missing or damaged ({why})")):
            data = path.read_bytes()
            written = entry.get("sha256")  # not there before 0.2.0
            if written is not None and hashlib.sha256(data).hexdigest() != written:
                raise ValueError("its bytes have changed since it was written")
            arrays: dict[str, Array] = load(data)
            return {name: arrays[name] for name in entry["names"]}

    def info(self, step: int) -> dict[str, Any]:
        """Return the values that were kept with a snapshot."""
        return dict(self._entry(step)["info"])

    def rounding(self, step: int) -> float:
        """Return the Euclidean distance of stored weights from the run's; 0 for float32 kept as float32."""
        return float(self._entry(step)["rounding"])

    def _entry(self, step: int) -> dict[str, Any]:
        require(step in self._entries, "step", f"must be one of the {len(self.steps)} steps stored", step)
        return self._entries[step]


def _file(step: int) -> str:
    return f"{step:09d}.safetensors"


def _read_index(folder: Path) -> dict[str, Any]:
    with reworded(DAMAGED, lambda why: StoreError(f"the index of the snapshots in {folder} is damaged ({why})")):
        index = json.loads((folder / _INDEX).read_bytes())
    if not isinstance(index, dict) or index.get("schema") != _SCHEMA:
        found = index.get("schema") if isinstance(index, dict) else type(index).__name__
        raise StoreError(f"{folder} holds {found!r}, not {_SCHEMA!r}; it is foreign or of a newer version")
    entries = index.get("snapshots")
    whole = isinstance(entries, dict) and all(_is_entry(*pair) for pair in entries.items())
    if not whole or index.get("dtype") not in ("float16", "float32"):
        raise StoreError(f"the index of the snapshots in {folder} is damaged (an entry is missing or no snapshot's)")
    return index


def _is_entry(step: str, entry: Any) -> bool:
    kinds = {"names": list, "info": dict, "rounding": int | float}
    numbered = step.isascii() and step.isdigit() and len(step) < 16
    return numbered and isinstance(entry, dict) and all(isinstance(entry.get(k), kind) for k, kind in kinds.items())


def _distance(original: Mapping[str, Array], stored: Mapping[str, Array]) -> float:
    total = 0.0
    for name, array in original.items():
        if np.issubdtype(array.dtype, np.floating) and array.dtype != stored[name].dtype:
            gap = array.astype(np.float64) - stored[name].astype(np.float64)
            total += float(np.square(gap[np.isfinite(gap)]).sum())
    return float(np.sqrt(total))
