"""The engine for one machine: a fixed number of processes, each with its share of the cores or its own accelerator.

We start the processes ourselves instead of taking a ready-made pool: in those of the standard library and of loky the
death of one worker breaks the pool, and with it the work of all others.
"""

from __future__ import annotations

import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import Any, Final

from lowland.core.contexts import held_interrupts
from lowland.core.errors import EngineError, InputError
from lowland.engine.base import Point, Row, Task
from lowland.engine.cores import accelerator, check_workers, thread_variables, threads_per_worker
from lowland.engine.packing import pack, unpack
from lowland.engine.scheduler import AHEAD, RETRIES, Scheduler
from lowland.engine.worker_pool import PooledEngine, WorkerPool

__all__ = ["Processes"]

_GRACE: Final = 2.0
"""Seconds a worker gets to leave its task's context before it is killed; Ctrl-C must end within 5 s."""


class Processes(PooledEngine):
    """Computes on several processes of this machine.

    Chunks are handed out as workers finish, at most two to each. A worker that dies is replaced and costs the points it
    was computing one retry; a point that kills its worker again and again becomes a failed row with the worker's last
    traceback.

    Args:
        workers: Number of processes.
        threads: Threads of each; None gives each its share of the cores, and no more than this process itself uses.

    Raises:
        InputError: If a number is below 1.

    Example:
        >>> Processes(2).name
        'processes:2'
    """

    def __init__(self, workers: int, *, threads: int | None = None) -> None:
        for name, number in (("workers", workers), ("threads", threads)):
            if number is not None and (not isinstance(number, int) or isinstance(number, bool) or number < 1):
                raise InputError(name, "must be a whole number, at least 1", number)
        self.workers, self.threads = workers, threads
        self.name = f"processes:{workers}"

    @property
    def worker_threads(self) -> int:
        """Threads of each process."""
        return self.threads or threads_per_worker(self.workers)

    def _gather(self, task: Task) -> WorkerPool:
        device = accelerator(task)
        check_workers(self.workers, self.threads, device)
        return _Crew(pack(task), self.workers, self.worker_threads, device)


class _Crew:
    """The processes, some of them perhaps dead; see `lowland.engine.worker_pool.WorkerPool`."""

    def __init__(self, task: bytes, size: int, threads: int, device: int | None) -> None:
        self._setup = pickle.dumps((threads, task))
        self._threads, self._device, self._size = threads, device, size
        self._false_starts = 0
        self._workers: list[_Worker] = []

    def hand_out(self, handout: Scheduler) -> None:
        # replace workers that died, and give everyone something to do
        while len(self._workers) < min(self._size, handout.unfinished):
            self._start()
        for _ in range(AHEAD):
            for worker in self._workers:
                if worker.ready and (chunk := handout.take(len(self._workers), worker.chunks)):
                    worker.give(chunk, handout)

    def _start(self) -> None:
        taken = {worker.seat for worker in self._workers}
        seat = next(seat for seat in range(self._size) if seat not in taken)
        with held_interrupts():  # a process that was started is also noted
            self._workers.append(_Worker(seat, self._threads, self._device))
        self._workers[-1].send(self._setup)

    def collect(self, handout: Scheduler) -> Iterator[list[Row]]:
        # wait for someone to report, and yield the rows that came
        by_connection: dict[Any, _Worker] = {worker.connection: worker for worker in self._workers}
        for connection in wait(list(by_connection), timeout=1.0):
            worker = by_connection[connection]
            kind, content = worker.receive()
            if kind == "rows":
                worker.chunks.popleft()
                yield content
            elif kind == "ready":
                worker.ready, self._false_starts = True, 0
            elif kind == "interrupted":
                raise KeyboardInterrupt
            elif kind == "broken":
                raise unpack(content)
            else:
                given_up = self._bury(worker, handout)
                if given_up:
                    yield given_up

    def _bury(self, worker: _Worker, handout: Scheduler) -> list[Row]:
        # take back the chunks of a worker that died
        self._workers.remove(worker)
        reason, traceback = worker.post_mortem()
        if not worker.ready:
            self._false_starts += 1
            if self._false_starts > RETRIES:
                raise EngineError(f"workers do not start: the last one {reason} {traceback}".rstrip())
        for waiting in list(worker.chunks)[1:]:
            handout.returned(waiting)
        return handout.lost(worker.chunks[0], reason, traceback) if worker.chunks else []

    def stop(self, *, at_once: bool) -> None:
        # end all workers, within seconds
        with held_interrupts():
            for worker in self._workers:
                worker.ask_to_leave(at_once)
            deadline = time.monotonic() + _GRACE
            for worker in self._workers:
                worker.leave_by(deadline)
            self._workers.clear()


class _Worker:
    """One process, as its driver sees it."""

    def __init__(self, seat: int, threads: int, device: int | None) -> None:
        ours, theirs = socket.socketpair()
        self.seat, self.ready = seat, False
        self.chunks: deque[list[Point]] = deque()
        self._crash = tempfile.TemporaryFile()  # ruff: ignore[open-file-with-context-handler] - read after the worker's death
        numbers = [theirs.fileno(), self._crash.fileno()]
        path = {"PYTHONPATH": os.pathsep.join(sys.path)}
        variables = {**os.environ, **path, **thread_variables(threads), **_visible(device, seat)}
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "lowland.engine.worker", *map(str, numbers)],
            env=variables, pass_fds=numbers, stdin=subprocess.DEVNULL, stdout=2,  # a driver's own output stays clean
            start_new_session=True,  # Ctrl-C is for the driver, which ends its workers in order
        )  # fmt: skip
        theirs.close()
        self.connection = Connection(ours.detach())

    def give(self, chunk: list[Point], handout: Scheduler) -> None:
        self.chunks.append(chunk)
        self.send(pickle.dumps((chunk, handout.parents(chunk))))

    def send(self, content: bytes) -> None:
        # that the worker has died is learned when its answer is read
        with suppress(OSError):
            self.connection.send_bytes(content)

    def receive(self) -> tuple[str, Any]:
        try:
            kind, content = pickle.loads(self.connection.recv_bytes())
        except (EOFError, OSError):
            return "died", None
        return kind, content

    def post_mortem(self) -> tuple[str, str]:
        # how the worker died, and its last traceback if it left one
        with suppress(subprocess.TimeoutExpired):  # it closed the connection, so that it is all but gone
            self._process.wait(_GRACE)
        self._process.kill()
        code = self._process.wait()
        self.connection.close()
        self._crash.seek(0)
        traceback = self._crash.read().decode(errors="replace")
        self._crash.close()
        if code == -signal.SIGKILL:
            return "was killed by SIGKILL (out of memory?)", traceback
        return (
            f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        ), traceback

    def ask_to_leave(self, at_once: bool) -> None:
        # either way it leaves its task's context
        if at_once or not self.ready:
            self._process.terminate()
        else:
            self.send(b"")

    def leave_by(self, deadline: float) -> None:
        try:
            self._process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self.connection.close()
        self._crash.close()


def _visible(device: int | None, seat: int) -> dict[str, str]:
    # the environment in which the accelerator that the task names is the seat's own
    if device is None:
        return {}
    import torch

    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    order = named or [str(number) for number in range(torch.cuda.device_count())]
    order[device], order[seat] = order[seat], order[device]
    return {"CUDA_VISIBLE_DEVICES": ",".join(order)}
