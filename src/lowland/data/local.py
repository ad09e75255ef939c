"""Local files of published data sets: where they lie, whether they are whole, and safe readers.

Nothing is ever downloaded. A file that is missing or not the published one gives an error that says which file goes
where, and no partial data set is ever made.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import pickle
import struct
import tarfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lowland.core.errors import DAMAGED, InputError, refused, require

_IDX_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def data_folder(name: str, folder: str | Path | None) -> Path:
    """Return the folder where a data set's files are looked for."""
    root = Path(os.environ.get("LOWLAND_DATA", "~/lowland-data")).expanduser()
    place = root / name if folder is None else Path(folder)
    if not place.is_dir():
        advice = f"put the files of {name} there, or name their folder by `folder` or the variable LOWLAND_DATA"
        raise InputError("folder", "must be a folder with the data set's files", str(place), advice)
    return place


def read_checked(path: Path, md5: str | None) -> bytes:
    """Read a file, and make sure that it is the published one."""
    with refused(OSError, "folder", f"must hold {path.name}", str(path.parent)):
        data = path.read_bytes()
    if md5 is not None:
        found = hashlib.md5(data, usedforsecurity=False).hexdigest()
        rule = f"must hold the published {path.name} (MD5 {md5})"
        require(found == md5, "folder", rule, found, "the file is damaged or incomplete: get it again")
    return data


def read_archive_member(path: Path, member: str, md5: str | None) -> bytes:
    """Read one file out of a tar archive whose checksum is known, without unpacking the archive."""
    data = read_checked(path, md5)
    kinds, rule = (*DAMAGED, tarfile.TarError, zlib.error), f"must hold a whole {path.name} with {member}"
    with refused(kinds, "folder", rule, str(path.parent)), tarfile.open(fileobj=io.BytesIO(data)) as archive:
        file = archive.extractfile(member)
        if file is None:
            raise KeyError(member)
        return file.read()


def read_idx(path: Path, md5: str | None) -> NDArray[Any]:
    """Read an IDX file (the format of MNIST), plain or gzipped."""
    data = read_checked(path, md5)
    kinds = (*DAMAGED, struct.error, zlib.error, MemoryError)
    with refused(kinds, "folder", f"must hold a whole IDX file {path.name}", str(path.parent)):
        if path.suffix == ".gz":
            data = gzip.decompress(data)
        zero, kind, dims = struct.unpack(">HBB", data[:4])
        shape = struct.unpack(f">{dims}I", data[4 : 4 + 4 * dims])
        if zero != 0 or kind not in _IDX_TYPES:
            raise ValueError("its magic number is wrong")
        array = np.frombuffer(data, dtype=_IDX_TYPES[kind], offset=4 + 4 * dims)
        return array.reshape(shape)


def read_plain_pickle(data: bytes, name: str) -> dict[bytes, Any]:
    """Read a pickled dict of numbers, strings, lists and NumPy arrays; nothing else is ever built."""
    # whatever an unpickler stumbles over in bytes that it was not made for
    with refused(Exception, "folder", f"must hold a whole and plain {name}"):
        content: dict[bytes, Any] = _PlainUnpickler(io.BytesIO(data), encoding="bytes").load()
    require(isinstance(content, dict), "folder", f"must hold a dict in {name}", type(content).__name__)
    return content


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        asked = f"{module.replace('numpy._core', 'numpy.core')}.{name}"  # NumPy 2 renamed its core
        if asked not in _PLAIN:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return _PLAIN[asked]


def _array(buffer: bytes, dtype: np.dtype[Any], shape: tuple[int, ...], order: Any) -> NDArray[Any]:
    return np.frombuffer(buffer, dtype=dtype).reshape(shape, order=order)


def _latin1(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it asks for the codec {encoding}")
    return text.encode("latin1")


_PLAIN: dict[str, Any] = {
    "numpy.ndarray": np.ndarray,
    "numpy.dtype": np.dtype,
    "numpy.core.multiarray._reconstruct": np.zeros(0).__reduce__()[0],
    "numpy.core.numeric._frombuffer": _array,
    "_codecs.encode": _latin1,  # how Python 3 writes bytes in old protocols
}
