"""What holds for all tests: one thread per process, files in memory, and a collector that does not read the libraries."""

from __future__ import annotations

import gc
import os
import shutil
import signal

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

torch.set_num_threads(1)

# Where there is no accelerator, each `torch.manual_seed` would write down the stack of its call three times, for the day
# that one appears: half a millisecond under pytest, tens of thousands of times.
if not torch.accelerator.is_available():
    for kind in (torch.cuda, torch.xpu, torch.mtia):
        kind.manual_seed_all = lambda seed: None  # type: ignore[attr-defined]

# A store is hundreds of small files that are synchronized one by one: 5 ms each on a disk, nothing in memory. A small
# /dev/shm (containers have 64 MB of it) is left alone.
MEMORY = "/dev/shm"
if os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > 2**30:
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", MEMORY)

# A shell that starts the tests in the background makes them ignore SIGINT, and their children too: Ctrl-C is tested.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


# Trainers collect garbage in every run, and each time read a million objects of torch and transformers: 0.7 s.
@pytest.fixture(autouse=True, scope="module")
def _libraries_are_no_garbage() -> None:
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
