"""The engine for one machine: a fixed number of processes, each with its share of the cores or its own accelerator.

We start the processes ourselves instead of taking a ready-made pool. In those of the standard library and of loky the
death of one worker breaks the pool, and with it the work of all others. Pebble's survives that, but starts its workers
by importing the driver's script (a script without a ``__main__`` guard never begins), ends them without leaving what
was set up, and gives all of them one environment, where each of ours sees an accelerator of its own.
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

from lowland.core.interrupts import held_interrupts
from lowland.engine.base import Engine, Setup, Workers
from lowland.engine.cores import accelerator, check_counts, check_workers, thread_variables, threads_per_worker
from lowland.engine.packing import pack
from lowland.engine.pool import Pool

_GRACE: Final = 2.0
"""Seconds a worker gets to leave its setup before it is killed; Ctrl-C must end within 5 s."""


class Processes(Engine):
    """Computes on several processes of this machine.

    Chunks are handed out as workers finish, at most two to each. A worker that dies is replaced and costs the items it
    was computing one retry; an item that kills its worker again and again becomes a failed result with the worker's
    last traceback.

    Args:
        workers: Number of processes, at least 1.
        threads: Threads of each; None gives each its share of the cores, and no more than this process itself uses.

    Example:
        >>> Processes(2).name
        'processes:2'
    """

    def __init__(self, workers: int, *, threads: int | None = None) -> None:
        check_counts(workers, threads)
        self.workers, self.threads = workers, threads
        self.name = f"processes:{workers}"

    @property
    def worker_threads(self) -> int:
        """Threads of each process."""
        return self.threads or threads_per_worker(self.workers)

    def open(self, setup: Setup, *, device: object = "cpu") -> Workers:
        """Return the processes."""
        return _Processes(self, setup, accelerator(device))


class _Processes(Pool["_Worker"]):
    """The processes of one machine."""

    def __init__(self, engine: Processes, setup: Setup, device: int | None) -> None:
        super().__init__()
        self.size, self._engine, self._setup, self._device = engine.workers, engine, setup, device
        self._threads, self._packed = 1, b""

    def begin(self) -> None:
        check_workers(self.size, self._engine.threads, self._device)
        self._threads = self._engine.worker_threads
        self._packed = pickle.dumps((self._threads, pack(self._setup, "setup")))

    def start(self) -> None:
        taken = {worker.seat for worker in self.members}
        seat = next(seat for seat in range(self.size) if seat not in taken)
        with held_interrupts():  # a process that was started is also noted
            self.members.append(_Worker(seat, self._threads, self._device))
        self.members[-1].send(self._packed)

    def reports(self) -> Iterator[tuple[_Worker, str, Any]]:
        by_connection: dict[Any, _Worker] = {worker.connection: worker for worker in self.members}
        for connection in wait(list(by_connection), timeout=1.0):
            worker = by_connection[connection]
            yield worker, *worker.receive()

    def post_mortem(self, member: _Worker, content: Any) -> tuple[str, str]:
        return member.post_mortem()

    def stop(self, *, at_once: bool) -> None:
        with held_interrupts():
            for worker in self.members:
                worker.ask_to_leave(at_once)
            deadline = time.monotonic() + _GRACE
            for worker in self.members:
                worker.leave_by(deadline)
            self.members.clear()


class _Worker:
    """One process, as its driver sees it."""

    def __init__(self, seat: int, threads: int, device: int | None) -> None:
        ours, theirs = socket.socketpair()
        self.seat, self.ready = seat, False
        self.chunks: deque[list[int]] = deque()
        self._sent: bytes | None = None
        self._crash = tempfile.TemporaryFile()  # ruff: ignore[open-file-with-context-handler] - read after the worker's death
        numbers = [theirs.fileno(), self._crash.fileno()]
        path = {"PYTHONPATH": os.pathsep.join(sys.path)}
        variables = {**os.environ, **path, **thread_variables(threads), **_visible(device, seat)}
        command = [sys.executable, "-P", "-m", "lowland.engine.worker", *map(str, numbers)]
        self._process = subprocess.Popen(
            command,
            env=variables,
            pass_fds=numbers,
            stdin=subprocess.DEVNULL,
            stdout=2,  # a driver's own output stays clean
            start_new_session=True,  # Ctrl-C is for the driver, which ends its workers in order
        )
        theirs.close()
        self.connection = Connection(ours.detach())

    def give(self, function: bytes, items: bytes) -> None:
        self.send(pickle.dumps((b"" if function is self._sent else function, items)))
        self._sent = function

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
        # either way it leaves the setup
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
    # the environment in which the accelerator that was named is the seat's own
    if device is None:
        return {}
    import torch

    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    order = named or [str(number) for number in range(torch.cuda.device_count())]
    order[device], order[seat] = order[seat], order[device]
    return {"CUDA_VISIBLE_DEVICES": ",".join(order)}
