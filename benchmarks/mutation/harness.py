"""A warm process that forks: tests run in children, in a copy of the repository where one file at a time is broken."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import os
import resource
import shutil
import signal
import sys
import threading
import time
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

WARM = ("torch", "torch._dynamo", "torch.func", "scipy.sparse.linalg", "scipy.stats", "xarray", "pandas", "zarr",
        "matplotlib.pyplot", "plotly.graph_objects", "lightning_fabric", "hypothesis", "jsonargparse", "cloudpickle",
        "sklearn.datasets", "rich.progress", "jinja2")  # fmt: skip
"""Imported once, before any fork; the mutated package never is."""

CHILDREN = """
import os, sys, threading
if os.environ.get("MUTATION_TRACE"):
    source, out = os.environ["MUTATION_TRACE"].split(os.pathsep)
    stream, seen = open(out, "a", buffering=1), set()

    def trace(frame, event, argument):
        code = frame.f_code
        if not code.co_filename.startswith(source):
            return None
        place = code.co_filename, frame.f_lineno
        if place not in seen:  # written at once: workers are killed
            seen.add(place)
            stream.write("%s\\t%d\\n" % place)
        return trace

    sys.settrace(trace)
    threading.settrace(trace)
"""
"""Traces the processes that a test starts: Python imports a ``sitecustomize`` from PYTHONPATH."""


class Workshop:
    """A copy of a repository in which tests run, each call in a fork of this process."""

    def __init__(self, root: Path, folder: Path, package: str, warm: Sequence[str] = WARM) -> None:
        self.copy, self.package = folder / "copy", package
        shutil.rmtree(self.copy, ignore_errors=True)
        hidden = shutil.ignore_patterns(".*", "__pycache__", "site", "runs", "dist")
        shutil.copytree(root, self.copy, ignore=hidden, symlinks=True)
        (self.copy / "sitecustomize.py").write_text(CHILDREN)
        sys.dont_write_bytecode, sys.pycache_prefix = False, str(folder / "bytecode")
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        os.environ.update(PYTHONPATH=os.pathsep.join(self._paths), PYTHONPYCACHEPREFIX=sys.pycache_prefix)
        for name in warm:
            with contextlib.suppress(ImportError):
                importlib.import_module(name)

    @property
    def _paths(self) -> list[str]:
        return [str(self.copy / "src"), str(self.copy)]

    @contextlib.contextmanager
    def broken(self, path: str, source: bytes) -> Generator[None]:
        """Have another text in a file. Bytecode is found by time and size, which may both be as before: it goes."""
        file = self.copy / path
        kept = file.read_bytes()
        cached = Path(importlib.util.cache_from_source(str(file)))
        try:
            cached.unlink(missing_ok=True)
            file.write_bytes(source)
            yield
        finally:
            file.write_bytes(kept)
            cached.unlink(missing_ok=True)

    def run(self, arguments: Sequence[str], plugin: Any, limit: float) -> int | None:
        """Return pytest's exit status, or None where the limit of processor seconds, or five times it, passed."""
        child = os.fork()
        if child == 0:
            self._child(arguments, plugin, int(limit))
        end = time.monotonic() + 5 * limit
        while time.monotonic() < end:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                code = os.waitstatus_to_exitcode(status)
                return None if code == -signal.SIGXCPU else code
            time.sleep(0.02)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return None

    def _child(self, arguments: Sequence[str], plugin: Any, limit: int) -> None:
        status = 70
        try:
            os.setsid()
            resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 5))
            out = os.open(self.copy.parent / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(out, 1)
            os.dup2(out, 2)
            os.chdir(self.copy)
            known = {*self._paths, ""}
            sys.path[:] = self._paths + [path for path in sys.path if path not in known]
            for name in [name for name in sys.modules if name.partition(".")[0] in (self.package, "benchmarks")]:
                del sys.modules[name]  # ours is the copy's
            options = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
            options += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]
            status = int(pytest.main([*options, *arguments], plugins=[plugin]))
        finally:
            sys.stdout.flush()
            os._exit(status)


class Recorder:
    """Pytest plugin that writes, for each test that passes, its seconds and which lines of the package it runs."""

    def __init__(self, source: Path, file: Path) -> None:
        self.source, self.file, self.children = f"{source}{os.sep}", file, file.with_suffix(".children")
        os.environ["MUTATION_TRACE"] = os.pathsep.join((self.source, str(self.children)))
        self.lines: set[tuple[str, int]] = set()
        self.shared: dict[int, set[tuple[str, int]]] = {}
        self.passed = True

    def _trace(self, frame: FrameType, event: str, argument: Any) -> Any:
        if not frame.f_code.co_filename.startswith(self.source):
            return None
        self.lines.add((frame.f_code.co_filename, frame.f_lineno))
        return self._trace

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any) -> Any:
        """Lines of a fixture that several tests share belong to each of them."""
        if fixturedef.scope == "function":
            return (yield)
        outer, self.lines = self.lines, set()
        try:
            return (yield)
        finally:
            self.shared[id(fixturedef)] = self.lines
            self.lines = outer | self.lines

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A test that is skipped or fails guards nothing."""
        self.passed = self.passed and report.passed

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: Any) -> Any:
        """Trace one test and write its record."""
        self.lines, self.passed = set(), True
        begin = time.perf_counter()
        sys.settrace(self._trace)
        threading.settrace(self._trace)
        try:
            return (yield)
        finally:
            sys.settrace(None)
            threading.settrace(None)  # type: ignore[arg-type]
            seconds = time.perf_counter() - begin
            for known in item._fixtureinfo.name2fixturedefs.values():
                self.lines |= self.shared.get(id(known[-1]), set())
            if self.children.exists():  # a file is emptied, not removed: workers that live on write into it
                rows = (row.split("\t") for row in self.children.read_text().splitlines())
                self.lines |= {(row[0], int(row[1])) for row in rows if len(row) == 2 and row[1].isdigit()}
                os.truncate(self.children, 0)
            if self.passed:
                self._write(item.nodeid, seconds)

    def _write(self, name: str, seconds: float) -> None:
        files: dict[str, int] = {}
        for path, line in self.lines:
            files[path] = files.get(path, 0) | 1 << line
        masks = {path.removeprefix(self.source): f"{mask:x}" for path, mask in files.items()}
        with self.file.open("a") as stream:
            stream.write(json.dumps({"test": name, "seconds": round(seconds, 3), "lines": masks}) + "\n")


class Chosen:
    """Pytest plugin that runs the tests named, in that order, and says which failed first."""

    def __init__(self, names: Sequence[str], file: Path) -> None:
        self.names, self.file = {name: number for number, name in enumerate(names)}, file

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Keep what is chosen."""
        items[:] = sorted((item for item in items if item.nodeid in self.names), key=lambda i: self.names[i.nodeid])

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Write each failure."""
        if report.failed:
            with self.file.open("a") as stream:
                stream.write(report.nodeid + "\n")


def read_map(file: Path) -> list[Mapping[str, Any]]:
    """Return what the recorder wrote, with masks of lines as numbers."""
    rows = [json.loads(row) for row in file.read_text().splitlines()] if file.exists() else []
    latest = {row["test"]: row for row in rows}
    return [{**row, "lines": {k: int(v, 16) for k, v in row["lines"].items()}} for row in latest.values()]
