"""The engine for a cluster: Ray actors, one device each; the one file that knows Ray.

Ray is used for what it is good at: finding nodes, starting workers there, moving objects, noticing deaths. Which items
go out next, and how often, is decided by `lowland.engine.scheduler` as on one machine, so that every engine computes
the same chunks in the same way.

What listens: a cluster that this file starts binds to the loopback address alone, as long as Ray had not been imported
before (Ray reads the setting when it is imported; afterwards its servers listen on all addresses). Token authentication
is Ray's default for a new cluster and stays on unless the environment says otherwise. Which addresses listen is logged
at the start; see `lowland.engine.sockets.listening`.
"""

from __future__ import annotations

import logging
import os
import re
import socket
import time
from collections import deque
from collections.abc import Generator, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, Final

import psutil

from lowland.core.errors import EngineError, InputError, optional_import
from lowland.core.provenance import versions
from lowland.engine.base import Engine, Setup, Workers
from lowland.engine.cores import accelerator, available_cores, check_counts, check_workers, thread_variables
from lowland.engine.packing import Remote, pack, portable, unpack
from lowland.engine.pool import Pool
from lowland.engine.sockets import listening

_LOGGER = logging.getLogger(__name__)

_GRACE: Final = 2.0
"""Seconds an actor gets to leave its setup before it is killed; Ctrl-C must end within 5 s."""

_LOOKS: Final = 5.0
"""Seconds between two looks at what the cluster has: workers come and go."""

_PATIENCE: Final = 600.0
"""Seconds without any worker before a run is given up; a cluster that grows on demand needs minutes."""

_REACHABLE: Final = 5.0
"""Seconds an address has to answer."""

_MATTERING: Final = ("lowland", "python", "torch", "numpy")
"""Whose versions must agree between driver and workers: they decide about bits, or about what can be unpacked."""


class Ray(Engine):
    """Computes on the actors of a Ray cluster, one device or core each.

    Without an address it uses the cluster that this process, or the job it runs in, belongs to; if there is none, it
    starts one on this machine, which ends with this process or by ``ray.shutdown()``. The setup is placed once in Ray's
    object store. Chunks are handed out as workers finish, at most two to each, so that a slow device holds nobody back.
    Workers may come and go; the items of one that is lost are tried again, a few times.

    Args:
        address: ``"ray://HOST:PORT"`` of a running cluster's client server, or ``"HOST:PORT"`` of its head.
        workers: Number of workers; None takes what the cluster has, also while it grows.
        threads: Threads, and Ray's CPUs, of each; None gives one.

    Example:
        >>> Ray(workers=2).name
        'ray:2'
    """

    def __init__(self, address: str | None = None, *, workers: int | None = None, threads: int | None = None) -> None:
        check_counts(workers, threads)
        if address is not None:
            _host_and_port(address)
        self.address, self.asked, self.threads = address, workers, threads
        self.workers = workers or (1 if address else available_cores())
        self.name = address or ("ray" if workers is None else f"ray:{workers}")

    @property
    def worker_threads(self) -> int:
        """Threads of each actor."""
        return self.threads or 1

    def open(self, setup: Setup, *, device: object = "cpu") -> Workers:
        """Return the actors."""
        return _Actors(self, setup, accelerator(device))


class _Actors(Pool["_Seat"]):
    """The actors of a cluster."""

    answers_get_lost = True

    def __init__(self, engine: Ray, setup: Setup, device: int | None) -> None:
        super().__init__()
        self.size, self._engine, self._setup, self._device = engine.workers, engine, setup, device
        self._ray: Any = None
        self._raylet: psutil.Process | None = None  # of a cluster that this process started
        self._wanted, self._looked, self._served = 1, -_LOOKS, 0.0

    def begin(self) -> None:
        engine, content, threads = self._engine, pack(self._setup, "setup"), self._engine.worker_threads
        self._ray = _connect(engine.address, engine.asked, engine.threads, self._device)
        self._raylet = next((p for p in psutil.Process().children() if p.name() == "raylet"), None)
        self._content, self._served = self._ray.put(content), time.monotonic()
        self._kind = self._ray.remote(
            num_cpus=threads,
            num_gpus=0 if self._device is None else 1,
            max_restarts=0,
            max_task_retries=0,
            runtime_env={"env_vars": thread_variables(threads)},
        )(_Actor)

    def start(self) -> None:
        self.members.append(_Seat(self._kind.remote(), self._content, self._engine.worker_threads))

    def publish(self, function: bytes) -> Any:
        return self._ray.put(function)

    def room(self) -> int:
        now = time.monotonic()
        if any(seat.ready for seat in self.members):
            self._served = now
        if now - self._looked < _LOOKS:
            return self._wanted
        self._looked = now
        found, threads = self._ray.cluster_resources(), self._engine.worker_threads
        places = found.get("CPU", 0) // threads if self._device is None else found.get("GPU", 0)
        self._wanted = self._engine.asked or max(1, int(places))
        if now - self._served > _PATIENCE:
            raise EngineError(f"no worker could be started for {_PATIENCE:.0f} s; the cluster has {found}")
        return self._wanted

    def reports(self) -> Iterator[tuple[_Seat, str, Any]]:
        if self._raylet is not None and not _lives(self._raylet):
            # Ray would end this whole process, without a word, at its next call that needs the raylet
            raise self._lost()
        by_answer = {seat.answers[0]: seat for seat in self.members if seat.answers}
        done, _ = self._ray.wait(list(by_answer), num_returns=1, timeout=1.0)
        for answer in done:
            seat = by_answer[answer]
            try:
                kind, content = self._ray.get(answer)
            except self._ray.exceptions.RayTaskError:  # not of the items, whose errors are results: a defect of ours
                raise
            except self._ray.exceptions.RayError as error:
                yield seat, "died", error
                continue
            seat.answers.popleft()
            yield seat, kind, content

    def post_mortem(self, member: _Seat, content: Exception) -> tuple[str, str]:
        with suppress(Exception):
            self._ray.kill(member.actor, no_restart=True)
        if not any(node["Alive"] for node in self._ray.nodes()):
            raise self._lost() from content
        return _reason(content), str(content)

    def _lost(self) -> EngineError:
        self._ray.shutdown()
        return EngineError("the Ray cluster was lost; finished points are kept, run again to go on")

    def stop(self, *, at_once: bool) -> None:
        # an actor cannot be interrupted: whoever still computes after the grace is killed, at once or not
        seats, self.members = self.members, []
        if not self._ray.is_initialized():
            return
        leaving = [seat.actor.leave.remote() for seat in seats]
        with suppress(self._ray.exceptions.RayError):
            self._ray.wait(leaving, num_returns=len(leaving), timeout=_GRACE) if leaving else None
        for seat in seats:
            with suppress(Exception):  # it may be gone already
                self._ray.kill(seat.actor, no_restart=True)


class _Seat:
    """One actor, as its driver sees it; its answers come in the order of the requests."""

    def __init__(self, actor: Any, content: Any, threads: int) -> None:
        self.actor, self.ready = actor, False
        self.chunks: deque[list[int]] = deque()
        self.answers: deque[Any] = deque([actor.place.remote(content, threads, _versions())])

    def give(self, function: Any, items: bytes) -> None:
        self.answers.append(self.actor.compute.remote(function, items))


class _Actor:
    """The side of the worker; its methods answer with a kind and a content."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._remote: Any = None

    def place(self, content: bytes, threads: int, driver: Mapping[str, str]) -> tuple[str, Any]:
        # enter the setup
        if _versions() != driver:
            return "refused", _difference(driver, _versions())
        try:
            import torch

            torch.set_num_threads(threads)
            self._remote = Remote(self._stack.enter_context(unpack(content)()))
        except Exception as error:
            return "broken", pack(portable(error), "error")
        return "ready", None

    def compute(self, function: bytes, items: bytes) -> tuple[str, bytes]:
        found: tuple[str, bytes] = self._remote(function, items)
        return found

    def leave(self) -> None:
        self._stack.close()


def _connect(address: str | None, workers: int | None, threads: int | None, device: int | None) -> Any:
    # Ray, connected to the cluster that was asked for or to one started on this machine
    given = address or os.environ.get("RAY_ADDRESS")
    with _variables({} if given else {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}):  # Ray's own switch for loopback
        ray: Any = optional_import("ray", extra="ray", needed_for='engine="ray"')
    if ray.is_initialized():
        return ray
    if given is None:
        check_workers(workers or 1, threads, device)
        _start(ray, max(available_cores(), (workers or 1) * (threads or 1)))
        return ray
    _check_reachable(given)
    try:
        ray.init(given, log_to_driver=False, configure_logging=False)
    except Exception as error:  # ConnectionError, RuntimeError (another version), or Ray's own kinds
        raise EngineError(f"cannot join the Ray cluster at {given} ({type(error).__name__}: {error})") from error
    return ray


def _start(ray: Any, cores: int) -> None:
    # token authentication is Ray's own default for a new cluster; it has read its settings, so none is changed here
    with _variables({**thread_variables(1), "RAY_USAGE_STATS_ENABLED": "0"}):
        ray.init(num_cpus=cores, include_dashboard=False, log_to_driver=False, configure_logging=False)
    _LOGGER.info("started a Ray cluster on this machine; it listens on %s", ", ".join(listening()))


@contextmanager
def _variables(values: Mapping[str, str]) -> Generator[None]:
    # environment variables that hold inside
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _host_and_port(address: str) -> tuple[str, int]:
    found = re.fullmatch(r"(?:ray://)?\[?([^/\s\]]+?)\]?:(\d+)", address)
    if found is None or not 0 < int(found[2]) < 65536:
        raise InputError("engine", "must be an address ray://HOST:PORT", address)
    return found[1], int(found[2])


def _check_reachable(address: str) -> None:
    # Ray itself would try for half a minute
    if address == "auto":
        return
    try:
        socket.create_connection(_host_and_port(address), timeout=_REACHABLE).close()
    except OSError as error:
        advice = "start one, or take engine='processes:N'"
        raise EngineError(f"no Ray cluster can be reached at {address} ({error}); {advice}") from error


def _lives(process: psutil.Process) -> bool:
    # whether a child still runs; one that ended is a zombie until somebody asks for its exit code
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _versions() -> dict[str, str]:
    return {name: version for name, version in versions().items() if name in _MATTERING}


def _difference(here: Mapping[str, str], there: Mapping[str, str]) -> str:
    differing = [name for name in _MATTERING if here.get(name) != there.get(name)]
    shown = ", ".join(f"{name} ({here.get(name)} here, {there.get(name)} there)" for name in differing)
    return f"workers have other versions than this process: {shown}; install the same on every node"


def _reason(error: Exception) -> str:
    # Ray's explanation in one clause
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if "detail" in line.lower() or "because" in line] or lines or [""]
    return f"was lost ({type(error).__name__}: {telling[-1][:120]})"
