"""How many cores and accelerators this process may use, and how workers share them."""

from __future__ import annotations

import math
import os
from pathlib import Path

from lowland.core.errors import InputError

_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def available_cores() -> int:
    """Return the cores that this process may use: those it may run on, or fewer where a container has a quota."""
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = _QUOTA.read_text().split()
        cores = min(cores, math.ceil(int(quota) / int(period)))
    except (OSError, ValueError):  # no control groups, or "max": no quota
        pass
    return max(1, cores)


def threads_per_worker(workers: int) -> int:
    """Return how many threads each worker gets: its share of the cores, never more than the driver itself uses."""
    import torch

    return max(1, min(torch.get_num_threads(), available_cores() // workers))


def thread_variables(threads: int) -> dict[str, str]:
    """Return the environment of a worker; it must stand before torch is imported."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    return {**dict.fromkeys(names, str(threads)), "OMP_WAIT_POLICY": "passive"}


def accelerator(device: object) -> int | None:
    """Return the number of an accelerator; None for the processor."""
    kind, _, number = str(device).partition(":")
    return None if kind == "cpu" else int(number or 0)


def check_counts(workers: int | None, threads: int | None) -> None:
    """Check numbers that a user gave."""
    for name, number in (("workers", workers), ("threads", threads)):
        if number is not None and (not isinstance(number, int) or isinstance(number, bool) or number < 1):
            raise InputError(name, "must be a whole number, at least 1", number)


def check_workers(workers: int, threads: int | None, device: int | None) -> None:
    """Check a number of workers on this machine."""
    if device is not None:
        import torch

        found = torch.cuda.device_count()
        if workers > found:
            raise InputError("engine", f"must not have more workers than the {found} accelerators there are", workers)
    elif threads is None and workers > available_cores():
        rule = f"must not have more workers than the {available_cores()} cores there are"
        raise InputError("engine", rule, workers, "use fewer, or an engine object with threads=1 if you mean it")
