"""Results on an object store: a local copy, written as always and uploaded file by file; one writer by a marker.

An object store replaces single objects as a whole, but has neither renames nor locks. So the rules of a local store are
kept by order and by a marker: values go up before the status, the store's own metadata go up last when it is made, and
``NAME.writer`` beside the store says who writes it. The marker is created only where there is none, carries a beat that
its owner renews, and is looked at before every upload; whoever finds that it is no longer his stops.

This is the one file that knows fsspec.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import platform
import tempfile
import threading
import time
import uuid
from collections.abc import Generator
from pathlib import Path
from typing import Any, Final

import psutil

from lowland.core.errors import StoreError, optional_import, refused, reworded

_LOGGER = logging.getLogger(__name__)

_BEAT: Final = 10.0
"""Seconds between two renewals of the marker."""

_STALE: Final = 4
"""A marker that was not renewed for this many beats, as seen by who waits for it, belongs to nobody any more."""


def is_url(path: str | Path) -> bool:
    """Tell whether a store lies on an object store."""
    return isinstance(path, str) and "://" in path


class Mirror:
    """A local copy of a remote store."""

    def __init__(self, url: str, folder: Path, files: tuple[Any, str]) -> None:
        self.url, self.folder = url, folder
        self._files, self._root = files
        self._known: dict[str, tuple[int, int]] = {}
        self.marker: _Marker | None = None

    def fetch(self) -> None:
        """Bring what is there into the local folder."""
        # every file system raises its own kinds
        with reworded(Exception, lambda why: StoreError(f"cannot read {self.url} ({why})")):
            if self._files.exists(f"{self._root}/zarr.json"):
                self._files.invalidate_cache()
                for remote in self._files.find(self._root):
                    place = self.folder / remote[len(self._root) :].lstrip("/")
                    place.parent.mkdir(parents=True, exist_ok=True)
                    place.write_bytes(self._files.cat_file(remote))
        self._known = self._present()

    def publish(self) -> None:
        """Upload files that changed: values before the status, the store's own metadata last."""
        # Remove those that went.
        if self.marker is not None:
            self.marker.check()
        present = self._present()
        kept = "finished points written before are kept"
        with reworded(Exception, lambda why: StoreError(f"cannot write {self.url} ({why}); {kept}")):
            changed = (name for name in present if self._known.get(name) != present[name])
            for name in sorted(changed, key=lambda n: (n == "zarr.json", n.startswith("status/"), n)):
                _put(self._files, f"{self._root}/{name}", (self.folder / name).read_bytes())
                self._known[name] = present[name]
            for name in self._known.keys() - present.keys():
                self._files.rm_file(f"{self._root}/{name}")
                del self._known[name]

    def _present(self) -> dict[str, tuple[int, int]]:
        found = {}
        for place in self.folder.rglob("*"):
            if place.is_file():
                status = place.stat()
                found[place.relative_to(self.folder).as_posix()] = (status.st_mtime_ns, status.st_size)
        return found


@contextlib.contextmanager
def fetched(url: str) -> Generator[Path]:
    """Bring a remote store here for reading."""
    with tempfile.TemporaryDirectory() as place:
        mirror = Mirror(url, Path(place) / "store.zarr", _file_system(url))
        mirror.fetch()
        yield mirror.folder


@contextlib.contextmanager
def held(url: str) -> Generator[Mirror]:
    """Become the only writer of a remote store and bring it here."""
    files, root = _file_system(url)
    with tempfile.TemporaryDirectory() as place, _Marker(url, files, f"{root}.writer") as marker:
        mirror = Mirror(url, Path(place) / "store.zarr", (files, root))
        mirror.marker = marker
        mirror.fetch()
        yield mirror


class _Marker:
    """The object that says who writes a store, renewed by a thread while the owner lives."""

    def __init__(self, url: str, files: Any, path: str) -> None:
        self._url, self._files, self._path = url, files, path
        self._owner = {"owner": uuid.uuid4().hex, "machine": _machine(), "process": os.getpid(), "every": _BEAT}
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True, name="lowland-heartbeat")

    def __enter__(self) -> _Marker:
        with reworded(Exception, lambda why: StoreError(f"cannot write beside {self._url} ({why})")):
            self._take()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()
        with contextlib.suppress(Exception):  # a marker that stays is found stale by the next run
            if self._read().get("owner") == self._owner["owner"]:
                self._files.rm_file(self._path)

    def check(self) -> None:
        """Demand that the store is still ours."""
        with reworded(Exception, lambda why: StoreError(f"cannot read beside {self._url} ({why})")):
            found = self._read()
        if found.get("owner") != self._owner["owner"]:
            raise StoreError(f"{self._url} has been taken over by another run; this one writes no more")

    def _take(self) -> None:
        while not self._create():
            before = self._read()
            if not _dead(before):
                _LOGGER.info("%s has a writer; waiting to see whether it lives", self._url)
            deadline = time.monotonic() + _STALE * float(before.get("every", _BEAT))
            while not _dead(before) and time.monotonic() < deadline:
                time.sleep(_BEAT / 10)
                now = self._read()
                if now and now != before:
                    advice = "wait for it, or choose another store"
                    raise StoreError(f"{self._url} is being written by another run; {advice}")
            if self._read() == before:  # nobody else was faster
                with contextlib.suppress(FileNotFoundError):
                    self._files.rm_file(self._path)

    def _create(self) -> bool:
        try:
            _put(self._files, self._path, self._content(0), mode="create")
        except FileExistsError:
            return False
        return self._read().get("owner") == self._owner["owner"]  # some file systems look first and write then

    def _beat(self) -> None:
        number = 0
        while not self._end.wait(_BEAT):
            number += 1
            with contextlib.suppress(Exception):  # the next upload finds out and says so
                if self._read().get("owner") == self._owner["owner"]:
                    self._files.pipe_file(self._path, self._content(number))

    def _content(self, number: int) -> bytes:
        return json.dumps({**self._owner, "beat": number}).encode()

    def _read(self) -> dict[str, Any]:
        try:
            self._files.invalidate_cache()
            found = json.loads(self._files.cat_file(self._path))
        except (FileNotFoundError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}


def _put(files: Any, path: str, content: bytes, mode: str = "overwrite") -> None:
    try:
        files.pipe_file(path, content, mode=mode)
    except FileNotFoundError:  # a file system that has folders
        files.makedirs(path.rpartition("/")[0], exist_ok=True)
        files.pipe_file(path, content, mode=mode)


def _machine() -> str:
    # a name that no other machine has, and that the same one has not after it was started anew
    boot = Path("/proc/sys/kernel/random/boot_id")
    return f"{platform.node()} {boot.read_text().strip() if boot.exists() else ''}"


def _dead(found: dict[str, Any]) -> bool:
    # the writer ran on this machine and has ended: no need to wait
    ours, process = found.get("machine") == _machine(), found.get("process")
    return not found or (ours and isinstance(process, int) and not psutil.pid_exists(process))


def _file_system(url: str) -> tuple[Any, str]:
    fsspec = optional_import("fsspec", extra="remote", needed_for=f"store={url!r}")
    with refused((ImportError, ValueError), "store", "must be a URL that fsspec can open", url):
        files, path = fsspec.core.url_to_fs(url)
    return files, str(path).rstrip("/")
