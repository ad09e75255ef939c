"""State of the process that a tool meets and may change: grad mode, autocast, defaults, flags, random states."""

from __future__ import annotations

import random
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Final

import numpy as np
import torch

from lowland.core.contexts import forked_rng

_AS_TORCH_STARTS: Final[dict[str, Callable[[], Any]]] = {
    "grad mode": torch.is_grad_enabled,
    "inference mode": torch.is_inference_mode_enabled,
    "autocast": lambda: torch.is_autocast_enabled("cpu"),
    "autocast's dtype": lambda: torch.get_autocast_dtype("cpu"),
    "autocast's cache": torch.is_autocast_cache_enabled,
    "the default dtype": torch.get_default_dtype,
    "the default device": lambda: str(torch.get_default_device()),
    "the deterministic flag": torch.are_deterministic_algorithms_enabled,
    "anomaly detection": torch.is_anomaly_enabled,
    "the number of threads": torch.get_num_threads,
    "cuDNN's flags": lambda: (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic),
    "the precision of products": torch.get_float32_matmul_precision,
}

RANDOM: Final[dict[str, Callable[[], Any]]] = {
    "Python's random state": random.getstate,
    "NumPy's random state": lambda: np.random.get_state()[1].tolist(),  # type: ignore[index]
    "torch's random state": lambda: torch.get_rng_state().tolist(),
}


def read(*, randomness: bool = True) -> dict[str, Any]:
    """Return all of it, by name."""
    return {name: of() for name, of in (_AS_TORCH_STARTS | (RANDOM if randomness else {})).items()}


def changed(before: dict[str, Any]) -> str:
    """Return what is not as it was, as words."""
    after = read()
    return ", ".join(name for name, value in before.items() if after[name] != value)


@contextmanager
def _set(put: Callable[[Any], Any], value: Any, get: Callable[[], Any]) -> Generator[None, None, None]:
    before = get()
    put(value)
    try:
        yield
    finally:
        put(before)


SURROUNDINGS: Final[dict[str, Callable[[], AbstractContextManager[Any]]]] = {
    "no_grad": torch.no_grad,
    "autocast to bfloat16": lambda: torch.autocast("cpu", torch.bfloat16),
    "deterministic algorithms": lambda: _set(
        torch.use_deterministic_algorithms, True, torch.are_deterministic_algorithms_enabled
    ),
    "the default dtype float16": lambda: _set(torch.set_default_dtype, torch.float16, torch.get_default_dtype),
    # a device that no model is on, which every machine has
    "the default device meta": lambda: torch.device("meta"),
}
"""What a script of a user may have set when it calls a tool."""


@contextmanager
def guarded() -> Generator[None, None, None]:
    """Put back, at the end, whatever a tool under test left changed."""
    before = read(randomness=False)
    device = before["the default device"]
    with forked_rng():
        try:
            yield
        finally:
            torch.set_grad_enabled(before["grad mode"])
            torch.set_autocast_enabled("cpu", before["autocast"])
            torch.set_autocast_dtype("cpu", before["autocast's dtype"])
            torch.set_autocast_cache_enabled(before["autocast's cache"])
            torch.set_default_dtype(before["the default dtype"])
            if changed({"the default device": device}):
                torch.set_default_device(None if device == "cpu" else device)
            torch.use_deterministic_algorithms(before["the deterministic flag"])
            torch.set_anomaly_enabled(before["anomaly detection"])
            torch.set_num_threads(before["the number of threads"])
            torch.set_float32_matmul_precision(before["the precision of products"])
            torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = before["cuDNN's flags"]
