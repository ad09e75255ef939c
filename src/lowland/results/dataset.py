"""Results on disk as labelled Datasets: open, save, and the writer that a survey fills point by point."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from lowland.core.errors import StoreError
from lowland.core.names import flattened
from lowland.core.schema import STATUS_FAILED, STATUS_MEASURED, check, identifier, migrated, plain
from lowland.results import remote, zarr
from lowland.results.files import only_writer

if TYPE_CHECKING:
    import xarray as xr

Array: TypeAlias = NDArray[Any]

_SECONDS: Final = 2.0
"""Longest work that may be lost besides the chunk in flight."""


def open(path: str | Path) -> xr.Dataset:
    """Open a surface, trajectory or curvature result.

    Args:
        path: The store's folder, or the URL of a store on an object store.

    Returns:
        The Dataset, in memory; nothing stays open.

    Raises:
        StoreError: If it does not exist, is damaged, foreign, or of a newer schema; an older one is migrated in memory.

    Example:
        >>> import tempfile
        >>> from lowland.core.schema import new_trajectory
        >>> path = Path(tempfile.mkdtemp()) / "path.zarr"
        >>> save(new_trajectory([[0.0, 1.0]], steps=[0], variables={}), path)
        >>> open(path).sizes["axis"]
        2
    """
    if remote.is_url(path):
        with remote.fetched(str(path)) as folder, _named(folder, str(path)):
            return open(folder)
    dataset = migrated(zarr.read(Path(path)))
    check(dataset)
    return dataset


def save(dataset: xr.Dataset, path: str | Path, *, overwrite: bool = False) -> None:
    """Write a whole result to a folder or URL, or nothing; a store that is there is kept unless `overwrite` is set."""
    check(dataset)
    if remote.is_url(path):
        with remote.held(str(path)) as mirror, _named(mirror.folder, mirror.url):
            zarr.create(dataset, mirror.folder, overwrite=overwrite)
            mirror.publish()
        return
    with only_writer(Path(path)):
        zarr.create(dataset, Path(path), overwrite=overwrite)


@contextmanager
def _named(folder: Path, url: str) -> Generator[None]:
    # messages name the store as the user does, not the copy of it
    try:
        yield
    except StoreError as error:
        raise StoreError(str(error).replace(str(folder), url)) from error


class SurfaceWriter:
    """Takes the points of a surface as they are measured: in memory, and into a store where it has one.

    A store gets values before their status, and what is new at most every two seconds.

    Args:
        dataset: The surface, with the points of an earlier run filled in.
        path: The store, which exists and holds the same surface; None keeps the surface in memory alone.
        resumed: Whether there was an earlier run.
        publish: Called whenever the store has changed; None where the folder is the store.
    """

    def __init__(
        self,
        dataset: xr.Dataset,
        path: Path | None = None,
        *,
        resumed: bool = False,
        publish: Callable[[], None] | None = None,
    ) -> None:
        self.dataset, self.resumed, self._publish = dataset, resumed, publish
        # the arrays themselves: looking them up in the Dataset takes longer than a small network takes for a point
        self._arrays: dict[str, Array] = {str(name): dataset[name].values for name in dataset.data_vars}
        self._dims = {str(name): tuple(str(dim) for dim in dataset[name].dims) for name in dataset.data_vars}
        self._status, self._point_dims = self._arrays["status"], self._dims["status"]
        self._carry: dict[int, dict[str, Array]] = {}  # what is put with points, where there is no store
        self._marks = np.zeros(self._status.shape, dtype=np.bool_)  # points that the store lacks
        self._flushed = -np.inf
        order = [*(name for name in self._arrays if name != "status"), "status"]
        self._store = None if path is None else zarr.ZarrArrays(path, self._arrays, order)

    @property
    def status(self) -> Array:
        """Status of every point in flat order (direction, x, y), shape [points]; a copy."""
        return self._status.reshape(-1).copy()

    def put(
        self,
        index: int,
        values: Mapping[str, Any],
        *,
        status: int = STATUS_MEASURED,
        error: str = "",
        carry: Mapping[str, Any] | None = None,
    ) -> None:
        """Keep one point; what is written to disk when is the writer's business.

        Args:
            index: Flat number of the point in the order direction, x, y.
            values: Numbers by name, or one per split.
            status: What kind of value it is. Default measured.
            error: Why it failed; the status becomes failed then.
            carry: Arrays that other points start from, kept for a run that goes on.
        """
        if carry and self._store is not None:
            self._store.keep(index, carry)  # at once: before the point's status can be written
        elif carry:
            self._carry[index] = {name: np.asarray(array) for name, array in carry.items()}
        place = dict(zip(self._point_dims, np.unravel_index(index, self._status.shape), strict=True))
        for name, value in values.items():
            self._arrays[name][tuple(place.get(dim, slice(None)) for dim in self._dims[name])] = value
        point = tuple(place.values())
        self._arrays["error"][point] = error
        self._status[point] = STATUS_FAILED if error else status
        self._marks[point] = True
        if time.monotonic() - self._flushed >= _SECONDS:
            self.flush()

    def annotate(self, attributes: Mapping[str, Any]) -> None:
        """Keep plain JSON values by name as attributes, on disk at once."""
        self.dataset.attrs.update(plain(attributes))
        if self._store is not None:
            self._store.attributes(self.dataset.attrs)
            self._published()

    def carried(self, index: int) -> dict[str, Array]:
        """Return the arrays by name that were put with a point; empty where none were."""
        return dict(self._carry.get(index, {})) if self._store is None else self._store.carried(index)

    def flush(self) -> None:
        """Write every chunk that holds a new point to disk now."""
        if self._store is not None and self._marks.any():
            self._store.write(self._marks, self._point_dims, self._dims)
            self._published()
        self._marks[:] = False
        self._flushed = time.monotonic()

    def _published(self) -> None:
        if self._publish is not None:
            self._publish()


@contextmanager
def writer(path: str | Path | None, template: xr.Dataset) -> Generator[SurfaceWriter]:
    """Open a store for writing: a new one, or one in which an earlier run of the same recipe goes on.

    Args:
        path: The store's folder or URL; None keeps the surface in memory.
        template: The surface with every point open; its ``recipe_fingerprint`` must be that of the store.

    Yields:
        The writer; what was put is on disk when the context is left, also after an exception.

    Raises:
        StoreError: If another run writes it, it holds another recipe, or it is damaged, foreign, of a newer schema or
            not writable; it is left as it was.
    """
    check(template, "surface")
    if path is None:
        yield SurfaceWriter(template.copy(deep=True))
        return
    with ExitStack() as stack:
        publish = None
        if remote.is_url(path):
            mirror = stack.enter_context(remote.held(str(path)))
            stack.enter_context(_named(mirror.folder, mirror.url))
            path, publish = mirror.folder, mirror.publish
        path = Path(path).absolute()  # wherever the process goes meanwhile
        stack.enter_context(only_writer(path))
        surface = template.copy(deep=True)
        resumed = zarr.exists(path)
        if resumed:
            _fill(surface, zarr.read(path), path)
        else:
            zarr.create(template, path)
            if publish is not None:
                publish()
        keeper = SurfaceWriter(surface, path, resumed=resumed, publish=publish)
        try:
            yield keeper
        finally:
            keeper.flush()


def _fill(surface: xr.Dataset, found: xr.Dataset, path: Path) -> None:
    """Copy what an earlier run stored into the template's own arrays, which have the width of texts to come."""
    current = migrated(found)
    check(current, "surface")
    _same_recipe(path, current.attrs, surface.attrs)
    if set(current.variables) != set(found.variables) or not all(current[n].equals(found[n]) for n in found.variables):
        raise StoreError(
            f"{path} was begun under the schema {found.attrs['schema']!r}: it can be opened, but a survey under "
            f"{identifier('surface')!r} cannot go on in it; choose another store"
        )
    for name in surface.data_vars:
        if name not in current or current[name].shape != surface[name].shape:
            raise StoreError(f"{path} is damaged: the variable `{name}` is missing or of another shape")
        surface[name].values[...] = current[name].values
    surface.attrs.update(current.attrs)
    if current.attrs["schema"] != found.attrs["schema"]:  # the older words only: the store takes the present ones
        zarr.renew_attributes(path, current)


def _same_recipe(path: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    if found.get("recipe_fingerprint") == wanted.get("recipe_fingerprint"):
        return
    old, new = (flattened(json.loads(attrs.get("recipe", "{}"))) for attrs in (found, wanted))
    differing = sorted(key for key in old.keys() | new.keys() if not _alike(old.get(key), new.get(key)))
    if old and not differing:
        return
    shown = ", ".join(f"{key.replace('..', '.')} ({_shown(old.get(key), new.get(key))})" for key in differing[:3])
    more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
    raise StoreError(f"{path} holds a survey of another recipe: {shown or 'unknown'}{more}; choose another store")


def _shown(old: Any, new: Any) -> str:
    """Say in what two parts of a recipe differ: of long lists how many there are, and the first that differ."""
    at = 0
    if isinstance(old, list) and isinstance(new, list):
        at = next((k for k, pair in enumerate(zip(old, new, strict=False)) if not _alike(*pair)), 0)
    return f"{_brief(old, at)} there, {_brief(new, at)} here"


def _brief(value: Any, at: int) -> str:
    if isinstance(value, list) and len(value) > 3:
        some = [f"{one:.6g}" if isinstance(one, float) else repr(one)[:20] for one in value[at : at + 3]]
        return f"{len(value)} values: {'..., ' * (at > 0)}{', '.join(some)}{', ...' * (at + 3 < len(value))}"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _alike(old: Any, new: Any) -> bool:
    """Tell whether two parts of a recipe are the same; processors differ in the last digits of norms and cosines."""
    if isinstance(old, float) and isinstance(new, float):
        return old == new or math.isclose(old, new, rel_tol=1e-12, abs_tol=1e-14)
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        return old.keys() == new.keys() and all(_alike(old[key], new[key]) for key in old)
    if isinstance(old, list) and isinstance(new, list):
        return len(old) == len(new) and all(map(_alike, old, new))
    return bool(old == new)
