"""Damaged and hostile files by the thousand: ``python -m tests.fuzz READER COUNT FOLDER``, or ``--only NUMBER`` of them.

One reader is one process: a crash inside a C library, a loop without end or a claim on all memory ends that process
alone, and the number of the input stands in FOLDER/at. An input depends on the reader's name and its number.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import json
import os
import pickle
import random
import re
import resource
import shutil
import signal
import struct
import sys
import tarfile
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import lowland as ll
from lowland import results
from lowland.core.errors import CheckpointError, InputError, StoreError
from lowland.core.schema import new_surface, new_trajectory
from lowland.data.local import read_archive_member, read_checked, read_idx, read_plain_pickle
from lowland.opening import open_runs
from lowland.training import CheckpointFolder
from lowland.training.checkpoint import to_safetensors
from lowland.workflows import fit, read_recipe
from lowland.workflows.parse import call

SECONDS, ROOM = 20, 2**31
"""An input that takes longer hangs; bytes that a reader may ask for beyond what the process has."""
FORBIDDEN = re.compile(r"os\.(system|exec|fork|forkpty|spawn|posix_spawn|remove|rename|rmdir|mkdir|chmod|symlink|link)|"
                       r"subprocess\.|socket\.(connect|bind)|shutil\.|ctypes\.dlopen|webbrowser\.")  # fmt: skip
NUMBERS = [b"-1", b"0", b"7", b"1e400", b"NaN", b"99999999999999999999", b"null", b'""', b"[]", b"{}", b"true", b"1.5"]
WORDS = [b"", b"../../x", b"\\u0000", b"a" * 300, b"/dev/zero", b"os.system", b"object", b"!!python/name:os.system"]
GOLDEN = Path(__file__).parent / "golden" / "files" / "0.1.0"


class Hang(BaseException):
    """An input took too long; no reader can take it for an error of the file."""


class Payload:
    """Acts when somebody unpickles it."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.pair = function, arguments

    def __reduce__(self) -> Any:
        return self.pair


def payloads(mark: Path) -> list[Payload]:
    write = f"open({str(mark)!r}, 'w').close()"
    return [Payload(Path.touch, mark), Payload(os.system, f"touch {mark}"), Payload(eval, write), Payload(exec, write)]


def mutated(data: bytes, rng: random.Random) -> bytes:
    """Change a file at one to four places: as bytes, as text, as numbers."""
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        at, size = rng.randrange(len(data) + 1), rng.randint(1, 16)
        kind = rng.randrange(9)
        if kind == 0:
            data = data[:at]
        elif kind == 1 and at < len(data):
            data = data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
        elif kind == 2:
            data = data[:at] + rng.randbytes(size) + data[at + size :]
        elif kind == 3:
            data = data[:at] + rng.randbytes(size) + data[at:]
        elif kind == 4:
            data = data[:at] + data[at + size :]
        elif kind == 5:
            other = rng.randrange(len(data) + 1)
            data = data[:at] + data[other : other + size * 4] + data[at:]
        elif kind == 6:
            number = rng.choice((0, 1, 127, 255, 2**15, 2**31 - 1, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1))
            width = rng.choice((1, 2, 4, 8))
            data = (
                data[:at]
                + (number % 2 ** (8 * width)).to_bytes(width, rng.choice(("little", "big")))
                + data[at + width :]
            )
        else:
            pattern, others = (rb"-?\d+(?:\.\d+)?", NUMBERS) if kind == 7 else (rb"[A-Za-z_][\w./-]{2,}", WORDS)
            found = list(re.finditer(pattern, data[:100_000]))
            if found:
                there = rng.choice(found)
                new = rng.choice([*others, rng.choice(found)[0]])
                data = data[: there.start()] + new + data[there.end() :]
    return data


def state() -> dict[str, torch.Tensor]:
    return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).state_dict()


def saved(content: object, *, old: bool = False) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=not old)
    return buffer.getvalue()


def seed(folder: Path, **files: bytes) -> None:
    """Write one more folder of files to damage; names with `__` for a dot."""
    place = folder / str(len(list(folder.iterdir())))
    place.mkdir()
    for name, data in files.items():
        (place / name.replace("__", ".")).write_bytes(data)


def make_pickles(folder: Path, mark: Path) -> None:
    for old in (False, True):
        seed(folder, w__pt=saved({"state_dict": state(), "epoch": 3}, old=old))
        for payload in payloads(mark):
            seed(folder, w__pt=saved({"state_dict": state(), "hyper_parameters": {"x": payload}}, old=old))


def make_safetensors(folder: Path, mark: Path) -> None:
    seed(folder, w__safetensors=to_safetensors(state()))


def make_checkpoint(folder: Path, mark: Path) -> None:
    for payload in ({}, *({"x": payload} for payload in payloads(mark))):
        place = folder / str(len(list(folder.iterdir())))
        place.mkdir()
        CheckpointFolder(place).save(3, state(), {"epoch": 1, "rng": torch.arange(3), **payload}, best=(2, state()))


def make_surface(folder: Path, mark: Path) -> None:
    surface = new_surface(np.arange(3.0), np.arange(2.0), metrics=["loss"], attrs={"recipe": {"seed": 1}})
    surface["loss"][:] = 1.0
    results.save(surface, folder / "0" / "s.zarr")
    results.save(new_trajectory([[0.0, 1.0], [1.0, 2.0]], steps=[0, 1], variables={}), folder / "1" / "s.zarr")


def make_old_curvature(folder: Path, mark: Path) -> None:
    shutil.copytree(GOLDEN / "runs" / "sam" / "curvature" / "hessian.zarr", folder / "0" / "s.zarr")


def make_li(folder: Path, mark: Path) -> None:
    surface = new_surface(np.arange(3.0), np.arange(2.0), metrics=["loss"])
    surface["loss"][:] = 1.0
    (folder / "0").mkdir()
    results.write_li_hdf5(surface, folder / "0" / "s.h5")


def make_directions(folder: Path, mark: Path) -> None:
    (folder / "0").mkdir()
    results.write_directions(folder / "0" / "d.h5", [[np.ones(3), np.ones((2, 2))], [np.ones(3), np.ones((2, 2))]])


def make_snapshots(folder: Path, mark: Path) -> None:
    for step in (0, 10):
        results.SnapshotWriter(folder / "0").write(step, {"w": np.ones(3, np.float32)}, {"epoch": step})


def make_curve(folder: Path, mark: Path) -> None:
    (folder / "0").mkdir()
    ll.landscape.Curve.through(nn.Linear(2, 1), nn.Linear(2, 1)).save(folder / "0" / "c.safetensors")


def make_run(folder: Path, mark: Path) -> None:
    for source in ("sam", "ema"):
        shutil.copytree(GOLDEN / "runs" / source, folder / source, ignore=shutil.ignore_patterns("*.zarr", "[cs]*s"))


def make_spec(folder: Path, mark: Path) -> None:
    plain = "seed: 3\nepochs: 2\ndata: {name: digits}\nloss: {name: mse}\noptimizer: {name: sgd, learning_rate: 0.1}\n"
    seed(folder, s__yaml=plain.encode())
    for tag in (
        f"!!python/object/apply:os.system ['touch {mark}']",
        f"!!python/object/new:exec [\"open('{mark}', 'w')\"]",
    ):
        seed(folder, s__yaml=f"{plain}model: {tag}\n".encode())


def make_recipe(folder: Path, mark: Path) -> None:
    source = Path(ll.workflows.__file__).parent / "recipes" / "li-resnet20.yaml"
    seed(folder, s__yaml=source.read_bytes())


def make_idx(folder: Path, mark: Path) -> None:
    array = struct.pack(">HBB2I", 0, 8, 2, 2, 3) + bytes(6)
    seed(folder, a=array, b__gz=gzip.compress(array, mtime=0))


def make_data(folder: Path, mark: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        archive.addfile(tarfile.TarInfo("member"), io.BytesIO())
    for content in ({}, *({b"x": payload} for payload in payloads(mark))):
        pickled = pickle.dumps({b"data": np.arange(6.0), b"labels": [1, 2], **content}, 2)
        seed(folder, p=pickled, a__tar=buffer.getvalue())


def read_run(place: Path) -> object:
    run = open_runs([place])[0]
    shown = [repr(run), run._repr_html_()]
    return [
        *shown,
        run.metrics,
        run.number("test_loss"),
        run.method,
        run.seed,
        run.last("x"),
        run.finished and run.result,
    ]


def read_snapshots(place: Path) -> object:
    reader = results.SnapshotReader(place)
    return [(arrays, reader.info(step), reader.rounding(step)) for step, arrays in reader]


def read_all_idx(place: Path) -> object:
    return read_idx(place / "a", None), read_idx(place / "b.gz", None)


def read_data(place: Path) -> object:
    return read_plain_pickle(read_checked(place / "p", None), "p"), read_archive_member(place / "a.tar", "member", None)


def seal(place: Path, path: Path) -> Path | None:
    """Give a damaged file of a checkpoint its new checksum, so that what reads it is reached."""
    index = place / "checkpoints" / "index.json"
    if path == index or not path.exists():
        return None
    content = json.loads(index.read_text())
    for entry in content["files"].values():
        if entry["name"] == path.name:
            entry["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    index.write_text(json.dumps(content))
    return index


@dataclass(frozen=True)
class Reader:
    """What writes whole files, reads them, and may be raised."""

    make: Callable[[Path, Path], None]
    read: Callable[[Path], object]
    refusal: type[Exception]
    seal: Callable[[Path, Path], Path | None] = lambda place, path: None
    count: int = 20_000  # inputs in the slow tests; fewer where a single one takes more than a few milliseconds


READERS = {
    "weights.pt": Reader(make_pickles, lambda place: ll.models.read_weights(place / "w.pt"), CheckpointError),
    "weights.safetensors": Reader(
        make_safetensors, lambda place: ll.models.read_weights(place / "w.safetensors"), CheckpointError
    ),
    "checkpoint": Reader(make_checkpoint, lambda place: CheckpointFolder(place).load(), CheckpointError, seal),
    "surface": Reader(make_surface, lambda place: results.open(place / "s.zarr"), StoreError, count=5000),
    "curvature of 0.1.0": Reader(
        make_old_curvature, lambda place: results.open(place / "s.zarr"), StoreError, count=1000
    ),
    "li surface": Reader(make_li, lambda place: results.read_li_hdf5(place / "s.h5"), StoreError),
    "li directions": Reader(make_directions, lambda place: results.read_directions(place / "d.h5"), StoreError),
    "snapshots": Reader(make_snapshots, read_snapshots, StoreError),
    "curve": Reader(make_curve, lambda place: ll.landscape.Curve.load(place / "c.safetensors"), CheckpointError),
    "run": Reader(make_run, read_run, InputError, count=5000),
    "spec": Reader(make_spec, lambda place: call(fit, ["--config", str(place / "s.yaml")]), InputError, count=1000),
    "recipe": Reader(make_recipe, lambda place: read_recipe(str(place / "s.yaml")), InputError),
    "idx": Reader(make_idx, read_all_idx, InputError),
    "pickled data": Reader(make_data, read_data, InputError),
}


class Watch:
    """Python's own reports of what it is asked to do while a reader is at work."""

    def __init__(self) -> None:
        self.active, self.seen = False, list[str]()
        sys.addaudithook(self)

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.active and (FORBIDDEN.match(event) or (event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR))):
            self.seen.append(f"{event} {arguments}")

    @contextmanager
    def during(self):
        self.active = True
        signal.alarm(SECONDS)
        try:
            yield
        finally:
            signal.alarm(0)
            self.active = False


def one(reader: Reader, place: Path, whole: dict[Path, bytes], rng: random.Random, watch: Watch) -> str:
    """Damage one file, read, and put it back; return "read", "refused", or what is wrong."""
    path = rng.choice(sorted(whole))
    path.unlink() if rng.random() < 0.01 else path.write_bytes(mutated(whole[path], rng))
    sealed = reader.seal(place, path) if rng.random() < 0.7 else None
    try:
        with watch.during():
            reader.read(place)
        return "read"
    except reader.refusal as error:
        return "refused" if str(error) and len(str(error)) < 5000 else f"says {str(error)[:200]!r}"
    except (Exception, Hang) as error:
        return f"{type(error).__name__}: {str(error)[:200]}"
    finally:
        for changed in (path, sealed):
            if changed is not None:
                changed.write_bytes(whole[changed])


def _hangs(*_: object) -> None:
    raise Hang(f"more than {SECONDS} s")


def fuzz(name: str, numbers: range, folder: Path) -> dict[str, Any]:
    reader, mark, watch = READERS[name], folder / "mark", Watch()
    (folder / "seeds").mkdir(parents=True)
    reader.make(folder / "seeds", mark)
    places = sorted((folder / "seeds").iterdir())
    reader.read(places[0])  # the first one is whole; what a reader imports is imported now
    wholes = {place: {file: file.read_bytes() for file in place.rglob("*") if file.is_file()} for place in places}
    signal.signal(signal.SIGALRM, _hangs)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + ROOM, resource.RLIM_INFINITY))
    counts = {"read": 0, "refused": 0}
    wrong: list[tuple[int, str]] = []
    at = os.open(folder / "at", os.O_WRONLY | os.O_CREAT)
    for number in numbers:
        os.pwrite(at, f"{number:9d}".encode(), 0)
        rng = random.Random(f"{name} {number}")
        place = rng.choice(places)
        found = one(reader, place, wholes[place], rng, watch)
        found = f"did {watch.seen}" if watch.seen or mark.exists() else found
        watch.seen.clear()
        mark.unlink(missing_ok=True)
        if found in counts:
            counts[found] += 1
        else:
            wrong.append((number, found))
    reader.read(places[0])  # what was refused was not refused for a state of this process
    return {"reader": name, **counts, "wrong": wrong}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("reader", choices=READERS)
    parser.add_argument("count", type=int)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", type=int)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    numbers = range(given.count) if given.only is None else range(given.only, given.only + 1)
    sys.stdout.write(json.dumps(fuzz(given.reader, numbers, given.folder)) + "\n")


if __name__ == "__main__":
    main()
