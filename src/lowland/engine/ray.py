"""The engine for a cluster: Ray actors, one device each; the one file that knows Ray.

Ray is used for what it is good at: finding nodes, starting workers there, moving objects, noticing deaths. Which points
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
import pickle
import re
import socket
import time
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, Final

from lowland.core.errors import EngineError, InputError, optional_import
from lowland.core.provenance import versions
from lowland.engine.base import Point, Row, Task, failed_row, run_chunk
from lowland.engine.cores import accelerator, available_cores, check_workers, thread_variables
from lowland.engine.packing import pack, portable, unpack
from lowland.engine.scheduler import AHEAD, RETRIES, Scheduler
from lowland.engine.sockets import listening
from lowland.engine.worker_pool import PooledEngine, WorkerPool

__all__ = ["Ray"]

_LOGGER = logging.getLogger(__name__)

_GRACE: Final = 2.0
"""Seconds an actor gets to leave its task's context before it is killed; Ctrl-C must end within 5 s."""

_LOOKS: Final = 5.0
"""Seconds between two looks at what the cluster has: workers come and go."""

_PATIENCE: Final = 600.0
"""Seconds without any worker before a run is given up; a cluster that grows on demand needs minutes."""

_REACHABLE: Final = 5.0
"""Seconds an address has to answer."""

_MATTERING: Final = ("lowland", "python", "torch", "numpy")
"""Whose versions must agree between driver and workers: they decide about bits, or about what can be unpacked."""


class Ray(PooledEngine):
    """Computes on the actors of a Ray cluster, one device or core each.

    Without an address it uses the cluster that this process, or the job it runs in, belongs to; if there is none, it
    starts one on this machine, which ends with this process or by ``ray.shutdown()``. The task is placed once in Ray's
    object store. Chunks are handed out as workers finish, at most two to each, so that a slow device holds nobody back.
    Workers may come and go; the points of one that is lost are tried again, a few times.

    Args:
        address: ``"ray://HOST:PORT"`` of a running cluster's client server, or ``"HOST:PORT"`` of its head.
        workers: Number of workers; None takes what the cluster has, also while it grows.
        threads: Threads, and Ray's CPUs, of each; None gives one.

    Raises:
        InputError: If a number is below 1 or the address is none.

    Example:
        >>> Ray(workers=2).name
        'ray:2'
    """

    def __init__(self, address: str | None = None, *, workers: int | None = None, threads: int | None = None) -> None:
        for name, number in (("workers", workers), ("threads", threads)):
            if number is not None and (not isinstance(number, int) or isinstance(number, bool) or number < 1):
                raise InputError(name, "must be a whole number, at least 1", number)
        if address is not None:
            _host_and_port(address)
        self.address, self.asked, self.threads = address, workers, threads
        self.workers = workers or (1 if address else available_cores())
        self.name = address or ("ray" if workers is None else f"ray:{workers}")

    @property
    def worker_threads(self) -> int:
        """Threads of each actor."""
        return self.threads or 1

    def _gather(self, task: Task) -> WorkerPool:
        content, device = pack(task), accelerator(task)
        ray = _connect(self.address, self.asked, self.threads, device)
        return _Crew(ray, content, self.asked, self.worker_threads, device)


class _Crew:
    """The actors, some of them perhaps lost; see `lowland.engine.worker_pool.WorkerPool`."""

    def __init__(self, ray: Any, content: bytes, asked: int | None, threads: int, device: int | None) -> None:
        self._ray, self._asked, self._threads, self._device = ray, asked, threads, device
        self._content = ray.put(content)
        self._kind = ray.remote(
            num_cpus=threads, num_gpus=0 if device is None else 1, max_restarts=0, max_task_retries=0,
            runtime_env={"env_vars": thread_variables(threads)},
        )(_Actor)  # fmt: skip
        self._seats: list[_Seat] = []
        self._wanted, self._looked, self._served = 1, -_LOOKS, time.monotonic()
        self._false_starts = 0

    def hand_out(self, handout: Scheduler) -> None:
        # start workers where there is room for them, and give everyone something to do
        self._look()
        while len(self._seats) < min(self._wanted, handout.unfinished):
            self._seats.append(_Seat(self._kind.remote(), self._content, self._threads))
        for _ in range(AHEAD):
            for seat in self._seats:
                if seat.ready and (chunk := handout.take(len(self._seats), seat.chunks)):
                    seat.give(chunk, handout)

    def _look(self) -> None:
        now = time.monotonic()
        if any(seat.ready for seat in self._seats):
            self._served = now
        if now - self._looked < _LOOKS:
            return
        self._looked = now
        found = self._ray.cluster_resources()
        room = found.get("CPU", 0) // self._threads if self._device is None else found.get("GPU", 0)
        self._wanted = self._asked or max(1, int(room))
        if now - self._served > _PATIENCE:
            raise EngineError(f"no worker could be started for {_PATIENCE:.0f} s; the cluster has {found}")

    def collect(self, handout: Scheduler) -> Iterator[list[Row]]:
        # wait for someone to report, and yield the rows that came
        by_answer = {seat.answers[0]: seat for seat in self._seats if seat.answers}
        done, _ = self._ray.wait(list(by_answer), num_returns=1, timeout=1.0)
        for answer in done:
            seat = by_answer[answer]
            try:
                kind, content = self._ray.get(answer)
            except self._ray.exceptions.RayTaskError:  # not of the task, whose errors are rows: a defect of ours
                raise
            except self._ray.exceptions.RayError as error:
                if given_up := self._bury(seat, error, handout):
                    yield given_up
                continue
            seat.answers.popleft()
            if kind == "rows":
                seat.chunks.popleft()
                yield pickle.loads(content)
            elif kind == "ready":
                seat.ready, self._false_starts = True, 0
            elif kind == "interrupted":
                raise KeyboardInterrupt
            elif kind == "versions":
                raise EngineError(_difference(content))
            else:
                raise unpack(content)

    def _bury(self, seat: _Seat, error: Exception, handout: Scheduler) -> list[Row]:
        # take back the chunks of a worker that was lost
        self._seats.remove(seat)
        with suppress(Exception):
            self._ray.kill(seat.actor, no_restart=True)
        if not any(node["Alive"] for node in self._ray.nodes()):
            self._ray.shutdown()
            raise EngineError("the Ray cluster was lost; finished points are kept, run again to go on") from error
        if not seat.ready:
            self._false_starts += 1
            if self._false_starts > RETRIES:
                raise EngineError(f"workers do not start: the last one {_reason(error)}") from error
        for waiting in list(seat.chunks)[1:]:  # an answer may be lost on its way when the next chunk kills the worker
            handout.returned(waiting, suspect=True)
        return handout.lost(seat.chunks[0], _reason(error), str(error)) if seat.chunks else []

    def stop(self, *, at_once: bool) -> None:
        # an actor cannot be interrupted: whoever still computes after the grace is killed, at once or not
        del at_once
        if not self._ray.is_initialized():
            return
        leaving = [seat.actor.leave.remote() for seat in self._seats]
        with suppress(self._ray.exceptions.RayError):
            self._ray.wait(leaving, num_returns=len(leaving), timeout=_GRACE) if leaving else None
        for seat in self._seats:
            with suppress(Exception):  # it may be gone already
                self._ray.kill(seat.actor, no_restart=True)
        self._seats.clear()


class _Seat:
    """One actor, as its driver sees it; its answers come in the order of the requests."""

    def __init__(self, actor: Any, content: Any, threads: int) -> None:
        self.actor, self.ready = actor, False
        self.chunks: deque[list[Point]] = deque()
        self.answers: deque[Any] = deque([actor.place.remote(content, threads, _versions())])

    def give(self, chunk: list[Point], handout: Scheduler) -> None:
        self.chunks.append(chunk)
        self.answers.append(self.actor.compute.remote(chunk, handout.parents(chunk)))


class _Actor:
    """The side of the worker; its methods answer with a kind and a content."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._task: Any = None
        self._context: Any = None

    def place(self, content: bytes, threads: int, driver: Mapping[str, str]) -> tuple[str, Any]:
        # set up the task
        if _versions() != driver:
            return "versions", (dict(driver), _versions())
        try:
            import torch

            torch.set_num_threads(threads)
            self._task = unpack(content)
            self._context = self._stack.enter_context(self._task.placed())
        except Exception as error:
            return "broken", pack(portable(error))
        return "ready", None

    def compute(self, points: Sequence[Point], parents: Mapping[int, Row]) -> tuple[str, Any]:
        try:
            rows = run_chunk(self._task, self._context, points, parents)
        except KeyboardInterrupt:
            return "interrupted", None
        try:
            return "rows", pickle.dumps(rows)
        except (pickle.PicklingError, TypeError, AttributeError) as error:  # rows of a user's own task
            return "rows", pickle.dumps([failed_row(point, error) for point in points])

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
        raise EngineError(
            f"no Ray cluster can be reached at {address} ({error}); start one, or take engine='processes:N'"
        ) from error


def _versions() -> dict[str, str]:
    return {name: version for name, version in versions().items() if name in _MATTERING}


def _difference(content: tuple[Mapping[str, str], Mapping[str, str]]) -> str:
    here, there = content
    differing = [name for name in _MATTERING if here.get(name) != there.get(name)]
    shown = ", ".join(f"{name} ({here.get(name)} here, {there.get(name)} there)" for name in differing)
    return f"workers have other versions than this process: {shown}; install the same on every node"


def _reason(error: Exception) -> str:
    # Ray's explanation in one clause
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if "detail" in line.lower() or "because" in line] or lines or [""]
    return f"was lost ({type(error).__name__}: {telling[-1][:120]})"
