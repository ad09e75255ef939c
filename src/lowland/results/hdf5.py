"""Surface and direction files of the tool of Li et al. 2018 (HDF5), read and written; needs the extra ``hdf5``.

A surface file holds ``xcoordinates``, ``ycoordinates`` and, for the train and test data, ``train_loss``, ``train_acc``
(in per cent) and so on, -1 where nothing was computed. The tool gives its arrays the shape (nx, ny) but fills them in
the flat order of ``numpy.meshgrid``, y slow and x fast: on a square grid entry [a, b] belongs to (x[b], y[a]), and on
any other grid rows and columns are scrambled. Both are undone here: point (i, j) is the value at (x[i], y[j]).

A direction file holds one group per axis, ``xdirection`` and ``ydirection``, with one array per tensor: ``0``, ``1``...
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from lowland.core.errors import InputError, StoreError, optional_import, require, reworded
from lowland.core.schema import STATUS_FAILED, STATUS_MEASURED, STATUS_OPEN, check, new_surface
from lowland.results.files import replacing

if TYPE_CHECKING:
    import xarray as xr

Array: TypeAlias = NDArray[Any]

LI_ENDINGS: Final = (".h5", ".hdf5")
"""How the tool's files end."""

_SPLITS: Final = ("train", "test")
_METRICS: Final[Mapping[str, tuple[str, float]]] = {"loss": ("loss", 1.0), "accuracy": ("acc", 100.0)}
"""Our name -> their name and factor."""


def read_li_hdf5(path: str | Path) -> xr.Dataset:
    """Read a surface file: loss and accuracy (a fraction), over ``split`` where both are there; -1 is an open point."""
    with _opened(path, "r") as file:
        if "xcoordinates" not in file:
            raise StoreError(f"{path} is no surface file: `xcoordinates` is missing")
        x = np.asarray(file["xcoordinates"][...], dtype=np.float64)
        y = np.asarray(file["ycoordinates"][...], dtype=np.float64) if "ycoordinates" in file else None
        splits = [split for split in _SPLITS if f"{split}_loss" in file]
        found = {
            (split, ours): np.asarray(file[f"{split}_{theirs}"][...], dtype=np.float64) / factor
            for split in splits
            for ours, (theirs, factor) in _METRICS.items()
            if f"{split}_{theirs}" in file
        }
    if not splits:
        raise StoreError(f"{path} is no surface file: it holds neither train nor test losses")
    try:
        return _surface(x, y, found, splits, str(path))
    except (ValueError, TypeError) as error:  # InputError is one: coordinates that are no axis
        raise StoreError(f"{path} is damaged ({error})") from error


def _surface(
    x: Array, y: Array | None, found: Mapping[tuple[str, str], Array], splits: list[str], path: str
) -> xr.Dataset:
    """Return what was read as a surface, in our order."""
    shape = (len(x),) if y is None else (len(x), len(y))
    if any(values.size != np.prod(shape) for values in found.values()):
        grid = f"{len(x)} x {1 if y is None else len(y)}"
        raise StoreError(f"{path} is damaged: its values do not fit {grid} coordinates")
    metrics = [name for name in _METRICS if all((split, name) in found for split in splits)]
    attrs = {"source": path, "recipe_fingerprint": "", "recipe": {}}
    surface = new_surface(x, y, metrics=metrics, splits=splits if len(splits) > 1 else (), attrs=attrs)
    open_points = np.zeros(shape, dtype=np.bool_)
    for (split, name), values in found.items():
        ordered = values if y is None else values.reshape(shape[::-1]).T  # y slow and x fast
        unset = ordered == -1 / _METRICS[name][1]
        open_points |= unset
        target = surface[name].sel(split=split) if len(splits) > 1 else surface[name]
        target.values[...] = np.where(unset, np.nan, ordered)
    surface["status"].values[...] = np.where(open_points, STATUS_OPEN, STATUS_MEASURED)
    return surface


def write_li_hdf5(surface: xr.Dataset, path: str | Path, *, split: str = "train", directions: str = "") -> None:
    """Write a surface file that the tool reads.

    Args:
        surface: A surface or line with ``loss`` and, if it has it, ``accuracy``.
        path: The file; an existing one is replaced.
        split: What the values belong to where the surface has no splits. Default ``"train"``.
        directions: Name of the direction file to refer to.

    Raises:
        InputError: If the surface has several directions, or no loss, or the split is unknown.
        StoreError: If the file cannot be written.
    """
    check(surface, "surface")
    if "direction" in surface.dims or "loss" not in surface:
        raise InputError("surface", "must have a loss and a single plane", dict(surface.sizes))
    names = [str(name) for name in surface["split"].values] if "split" in surface.dims else [split]
    require(not set(names) - set(_SPLITS), "split", 'must be "train" or "test" in this format', names)
    unset = np.isin(surface["status"].values, [STATUS_OPEN, STATUS_FAILED])
    content: dict[str, Any] = {"dir_file": directions, "xcoordinates": surface["x"].values}
    if "y" in surface.dims:
        content["ycoordinates"] = surface["y"].values
    for name in names:
        for ours, (theirs, factor) in _METRICS.items():
            if ours in surface:
                part = surface[ours].sel(split=name) if "split" in surface.dims else surface[ours]
                values = np.where(unset, -1.0, part.values * factor)
                content[f"{name}_{theirs}"] = values if values.ndim == 1 else values.T.reshape(values.shape)
    with _replacing(path) as file:
        for key, value in content.items():
            file[key] = value


def read_directions(path: str | Path) -> list[list[Array]]:
    """Read a direction file as one list of arrays per axis."""
    with _opened(path, "r") as file:
        names = [name for name in ("xdirection", "ydirection") if name in file]
        if "xdirection" not in names:
            raise StoreError(f"{path} is no direction file: `xdirection` is missing")
        try:
            return [[np.asarray(file[name][str(k)][...]) for k in range(len(file[name]))] for name in names]
        except KeyError as error:
            raise StoreError(f"{path} is damaged: its arrays are not numbered from 0 ({error})") from error


def write_directions(path: str | Path, directions: Sequence[Sequence[Array]]) -> None:
    """Write one or two lists of arrays, in the order of the model's parameters, as the tool's direction file."""
    require(len(directions) in (1, 2), "directions", "must be one or two", len(directions))
    with _replacing(path) as file:
        for name, arrays in zip(("xdirection", "ydirection"), directions, strict=False):
            group = file.create_group(name)
            for number, array in enumerate(arrays):
                group.create_dataset(str(number), data=np.asarray(array))


@contextmanager
def _opened(path: str | Path, mode: str) -> Generator[Any]:
    h5py = optional_import("h5py", extra="hdf5", needed_for="this file format")
    # the library has many words for a damaged header
    with reworded(Exception, lambda why: StoreError(f"{path} cannot be opened as HDF5 ({why})")):
        file = h5py.File(path, mode)
    # groups where arrays are due, texts for numbers, sizes beyond the file
    with reworded(Exception, lambda why: StoreError(f"{path} is damaged or cannot be written ({why})")), file:
        yield file


@contextmanager
def _replacing(path: str | Path) -> Generator[Any]:
    # as a whole or not at all: a kill leaves the old file
    with replacing(Path(path)) as temporary, _opened(temporary, "w") as file:
        yield file
