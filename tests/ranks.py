"""Several processes that talk to each other, copied from one that has imported what all of them need."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from typing import Any

import torch.multiprocessing

SHARED = ["pytest", "torch.nn.parallel", "lowland.landscape", "lowland.losses", "lowland.optim", "lowland.training"]


def together(work: Callable[..., None], *arguments: Any, count: int = 2) -> None:
    """Call a function of a rank and the arguments in so many processes; an error in one of them is raised here."""
    multiprocessing.get_context("forkserver").set_forkserver_preload(SHARED)  # imports are most of what they take
    torch.multiprocessing.start_processes(work, arguments, nprocs=count, start_method="forkserver")
