"""Results as Zarr v3 folders: the one file that knows Zarr.

A store is made under another name and renamed, every chunk is written to a temporary file and renamed (Zarr's local
store does that), all chunks exist from the start, and each carries a checksum. So a kill at any moment leaves a
readable store, and a chunk that is missing or cut off is known to be damage.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import uuid
import warnings
from collections.abc import Iterable, Mapping
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import numpy as np
from numpy.typing import NDArray

from lowland.core.errors import StoreError, reworded
from lowland.results.files import make_folder, writing

if TYPE_CHECKING:
    import xarray as xr
    import zarr

_CHUNK: Final = 101
"""Points per side of a chunk; a usual 51 x 51 or 101 x 101 surface is one chunk, so that a flush is one file each."""


def exists(path: Path) -> bool:
    """Tell whether there is a Zarr store."""
    return (path / "zarr.json").exists()


def create(dataset: xr.Dataset, path: Path, *, overwrite: bool = False) -> None:
    """Write a Dataset as a new store, as a whole or not at all."""
    import zarr  # as late as this: with xarray it is a third of what a worker of a survey would import beside torch

    if path.exists() and not (overwrite and exists(path)):
        what = "exists already" if exists(path) else "exists and is no store of Lowland"
        raise StoreError(f"{path} {what}; choose another place" + (", or overwrite it" if exists(path) else ""))
    make_folder(path.parent)
    for left in (one for kind in ("part", "old") for one in path.parent.glob(f".{path.name}.*.{kind}")):
        shutil.rmtree(left, ignore_errors=True)  # of a writer that was killed: this one holds the lock
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        with writing(path, "; what was there is kept"), zarr.config.set({"array.write_empty_chunks": True}):
            _encoded(dataset).to_zarr(
                temporary, zarr_format=3, consolidated=False, encoding=_encoding(dataset), write_empty_chunks=True
            )
            _replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _replace(new: Path, path: Path) -> None:
    """Put a folder in another's place; a kill between the two renames leaves the old one beside it."""
    old = path.with_name(f".{path.name}.{uuid.uuid4().hex}.old")
    if path.exists():
        os.rename(path, old)
    try:
        os.rename(new, path)
    finally:
        if old.exists() and not path.exists():
            os.rename(old, path)
        shutil.rmtree(old, ignore_errors=True)


def read(path: Path) -> xr.Dataset:
    """Read a store completely into memory."""
    if not exists(path):
        what = "is no store of Lowland, a folder that ends in .zarr" if path.exists() else "does not exist"
        raise StoreError(f"{path} {what}")
    import xarray as xr

    # Zarr and its codecs raise their own kinds for cut-off metadata and chunks
    with reworded(Exception, lambda why: StoreError(f"{path} is damaged ({why}); it was left as it is")):
        arrays, missing = _found(path)
        if names := ", ".join(missing):  # before anything is allocated by what the metadata say
            raise StoreError(f"{path} is damaged: missing of {names}; it was left as it is")
        with warnings.catch_warnings():
            # of what a kill left half written, or of what a stranger laid there; damage is an error below
            warnings.filterwarnings("ignore", message="Object at .* is not recognized")
            # the format is named, since an array of the older one may hold pickles
            dataset: xr.Dataset = xr.open_zarr(path, consolidated=False, chunks=None, zarr_format=3)
        if names := ", ".join(f"`{name}`" for name in arrays if name not in dataset.variables):
            raise StoreError(f"{path} is damaged: the metadata of {names} cannot be read; it was left as it is")
        for name, variable in dataset.variables.items():  # all first: what is assigned below copies the others
            said = f"{path} is damaged (`{name}`: "
            with reworded(Exception, lambda why, said=said: StoreError(f"{said}{why}); it was left as it is")):  # type: ignore[misc]
                variable.load()
        for name, variable in dataset.variables.items():
            variable.encoding = {}
            if variable.dtype.kind in "TO":
                dataset[name] = (variable.dims, np.asarray(variable.values.tolist(), dtype=np.str_), variable.attrs)
    return dataset[sorted(map(str, dataset.data_vars))]  # they come in the order of the folder's listing


def _found(path: Path) -> tuple[list[str], list[str]]:
    """Name the arrays with metadata, and those of which files are missing; what a kill left half written is none."""
    arrays, missing = [], []
    for file in sorted(place / "zarr.json" for place in path.iterdir() if place.is_dir()):
        name, chunks = file.parent.name, file.parent / "c"  # a file where the array is a number
        if not file.exists():
            if chunks.exists():  # an array, and no group that a kill left before its first file
                missing.append(f"`{name}` (zarr.json)")
            continue
        array = json.loads(file.read_bytes())
        if array["node_type"] != "array":
            continue
        arrays.append(name)
        sizes = zip(array["shape"], array["chunk_grid"]["configuration"]["chunk_shape"], strict=True)
        wanted = math.prod(-(-size // max(step, 1)) for size, step in sizes)
        found = sum(place.name.isdigit() and place.is_file() for place in chunks.rglob("*")) + chunks.is_file()
        if found < wanted:
            missing.append(f"`{name}` ({wanted - found} chunk{'s' * (wanted - found > 1)})")
    return arrays, missing


def attributes(path: Path) -> dict[str, Any]:
    """Return the attributes of a store without reading it; empty where they cannot be read, as `read` will say."""
    try:
        content = json.loads((path / "zarr.json").read_bytes())
        return dict(content["attributes"])
    except (OSError, ValueError, TypeError, LookupError, RecursionError):
        return {}


def renew_attributes(path: Path, dataset: xr.Dataset) -> None:
    """Write the attributes of a Dataset over those of its store, the store's own last."""
    import zarr

    with writing(path):
        group = zarr.open_group(path, mode="r+", zarr_format=3)
        for name, variable in dataset.variables.items():
            group[str(name)].update_attributes(dict(variable.attrs))
        group.update_attributes(dict(dataset.attrs))


class ZarrArrays:
    """Writes parts of the arrays of an existing store, whole chunks at a time."""

    def __init__(self, path: Path, arrays: Mapping[str, NDArray[Any]], order: Iterable[str]) -> None:
        import zarr

        self.path, self._arrays, self._order = path, arrays, list(order)
        for left in path.rglob("*.partial"):  # Zarr's own, of a writer that was killed
            left.unlink(missing_ok=True)
        self._group = zarr.open_group(path, mode="r+")

    def write(self, marks: NDArray[np.bool_], dims: tuple[str, ...], of: Mapping[str, tuple[str, ...]]) -> None:
        """Write every chunk that holds a marked point."""
        import zarr

        blocks = _blocks(marks, dims)
        kept = "; finished points written before are kept"
        with writing(self.path, kept), zarr.config.set({"array.write_empty_chunks": True}):
            for name in self._order:
                array, values = cast("zarr.Array[Any]", self._group[name]), self._arrays[name]
                for block in blocks:
                    place = tuple(block.get(dim, slice(None)) for dim in of[name])
                    part = values[place]
                    array[place] = part.astype(object) if part.dtype.kind == "U" else part

    def keep(self, index: int, arrays: Mapping[str, Any]) -> None:
        """Write the arrays of one point into the group ``carry/INDEX``, replacing those there."""
        with writing(self.path):
            group = self._group.require_group(f"carry/{index}")
            for name, array in arrays.items():
                values = np.asarray(array)
                group.create_array(name, data=values, chunks=values.shape or "auto", overwrite=True)

    def carried(self, index: int) -> dict[str, NDArray[Any]]:
        """Read the arrays of one point."""
        import zarr

        found = self._group.get(f"carry/{index}")
        if not isinstance(found, zarr.Group):
            return {}
        return {name: np.asarray(array[...]) for name, array in found.arrays()}

    def attributes(self, values: Mapping[str, Any]) -> None:
        """Replace attributes of the store."""
        with writing(self.path):
            self._group = self._group.update_attributes(dict(values))


def _blocks(marks: NDArray[np.bool_], dims: tuple[str, ...]) -> list[dict[str, slice]]:
    """Return the chunk-aligned slices by dim that hold a mark."""
    steps = [_step(dim, size) for dim, size in zip(dims, marks.shape, strict=True)]
    starts = [range(0, size, step) for size, step in zip(marks.shape, steps, strict=True)]
    found = []
    for corner in product(*starts):
        place = tuple(slice(start, start + step) for start, step in zip(corner, steps, strict=True))
        if marks[place].any():
            found.append(dict(zip(dims, place, strict=True)))
    return found


def _step(dim: str, size: int) -> int:
    if dim == "direction":
        return 1
    return min(size, _CHUNK) if dim in ("x", "y") else size


def _encoding(dataset: xr.Dataset) -> dict[str, Any]:
    from zarr.codecs import ZstdCodec

    return {
        str(name): {
            "chunks": tuple(_step(str(d), n) for d, n in zip(variable.dims, variable.shape, strict=True)),
            "compressors": [ZstdCodec(level=3, checksum=True)],
        }
        for name, variable in dataset.variables.items()
        if variable.ndim and variable.size
    }


def _encoded(dataset: xr.Dataset) -> xr.Dataset:
    """Return the Dataset with texts of variable length, the only kind that Zarr v3 specifies."""
    json.dumps(dataset.attrs)  # refuse before anything is written
    result = dataset.copy()
    for name, variable in dataset.variables.items():
        if variable.dtype.kind == "U":
            # an index keeps its own type where it is assigned as an array
            result[name] = (variable.dims, variable.values.astype(object), variable.attrs)
    for variable in result.variables.values():
        variable.encoding = {}
    return result
