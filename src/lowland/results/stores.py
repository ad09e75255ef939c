"""The stores of one folder by name, each read when it is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from lowland.core.schema import check
from lowland.results import zarr
from lowland.results.dataset import open as open_store
from lowland.results.hdf5 import LI_ENDINGS, read_li_hdf5

if TYPE_CHECKING:
    import xarray as xr


class StoreFolder(Mapping[str, "xr.Dataset"]):
    """The results of one kind in a folder by file name: stores, and surfaces of Li et al.'s tool; curvature by step."""

    def __init__(self, folder: Path | None, kind: str) -> None:
        self._folder, self._kind = folder, kind
        self._read: dict[str, xr.Dataset] = {}

    @cached_property
    def _paths(self) -> dict[str, Path]:
        endings = (".zarr", *LI_ENDINGS) if self._kind == "surface" else (".zarr",)
        places = self._folder.iterdir() if self._folder is not None and self._folder.is_dir() else ()
        found = sorted(path for path in places if path.suffix in endings and not path.name.startswith("."))
        if self._kind == "robustness":  # whose random directions lie beside it, as surfaces
            # a damaged one says nothing of itself, and is refused where it is read
            found = [path for path in found if "robustness" in str(zarr.attributes(path).get("schema", "robustness"))]
        if self._kind != "surface":
            found.sort(key=_step)
        return {path.stem: path for path in found}

    def __getitem__(self, name: str) -> xr.Dataset:
        if name not in self._paths:
            raise KeyError(f"no {self._kind} {name!r}; there are: {', '.join(self) or 'none'}")
        if name not in self._read:
            self._read[name] = open_kind(self._paths[name], self._kind)
        return self._read[name]

    def __contains__(self, name: object) -> bool:
        return name in self._paths  # what Mapping does would read the store

    def __iter__(self) -> Iterator[str]:
        return iter(self._paths)

    def __len__(self) -> int:
        return len(self._paths)

    def __repr__(self) -> str:
        return f"<{self._kind}: {', '.join(self) or 'none'}>"


def open_kind(path: Path, kind: str) -> xr.Dataset:
    """Open a store, and refuse one of another kind."""
    dataset = read_li_hdf5(path) if path.suffix in LI_ENDINGS else open_store(path)
    check(dataset, kind)
    return dataset


def _step(path: Path) -> float:
    step = zarr.attributes(path).get("step")  # a result without a step is the end of training
    return float(step) if isinstance(step, int | float) else float("inf")
