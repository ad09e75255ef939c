"""Tasks and looks at processes that the tests of several engines share."""

import ctypes
import os
import signal
import subprocess
import time
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from lowland.engine import Point, Row


@dataclass(frozen=True)
class Network:
    """A small network whose products depend on the number of threads and whose points depend on their parents."""

    seconds: float = 0.0
    kills: tuple[int, ...] = ()
    crashes: tuple[int, ...] = ()
    pids: str = ""
    carry: int = 0

    @contextmanager
    def placed(self):
        if self.pids:
            with open(self.pids, "a") as file:
                file.write(f"{os.getpid()}\n")
        generator = torch.Generator().manual_seed(0)
        yield torch.randn(64, 64, generator=generator), torch.randn(50, 64, generator=generator)

    def __call__(self, context, points, parents):
        weights, data = context
        result = []
        for point, parent in zip(points, parents, strict=True):
            if point.index in self.kills:
                os.kill(os.getpid(), signal.SIGKILL)
            if point.index in self.crashes:
                ctypes.string_at(0)
            time.sleep(self.seconds)
            start = 0.0 if parent is None else float(parent.carry["hidden"][0])
            hidden = torch.tanh(data @ (weights * point.coordinates[0]) + start).mean(0)
            value = float(hidden.square().sum())
            carried = np.resize(hidden.numpy(), self.carry or hidden.numel())
            values = {"value": value, "threads": float(torch.get_num_threads())}
            result.append(Row(point.index, values, {"hidden": carried}))
        return result


def grid(n):
    """A chain for every remainder by 5: each point is warm-started from the one five before it."""
    return [Point(i, (0.1 + i / n,), parent=i - 5 if i >= 5 else None) for i in range(n)]


def values(engine, task, todo, **options):
    return {row.index: row for rows in engine.run(task, todo, **options) for row in rows}


def bits(rows):
    return {i: (row.values["value"].hex(), row.carry["hidden"].tobytes()) for i, row in rows.items()}


def children(pid):
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True).stdout
    return [int(word) for word in found.split()]


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
