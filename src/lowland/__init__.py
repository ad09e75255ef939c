"""Lowland trains PyTorch models into flat minima and shows the ground they stand on.

The package is lazy (PEP 562): ``import lowland`` loads neither torch nor a drawing library, so that
stored results open and draw at once. A room is imported when it is first touched.

Example:
    >>> import lowland as ll
    >>> sorted(name for name in dir(ll) if name in {"optim", "results", "viz"})
    ['optim', 'results', 'viz']
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lowland import curvature as curvature
    from lowland import data as data
    from lowland import engine as engine
    from lowland import integrations as integrations
    from lowland import landscape as landscape
    from lowland import losses as losses
    from lowland import models as models
    from lowland import optim as optim
    from lowland import report as report
    from lowland import results as results
    from lowland import robustness as robustness
    from lowland import study as study
    from lowland import training as training
    from lowland import viz as viz
    from lowland import workflows as workflows
    from lowland.core.risk import EmpiricalRisk as EmpiricalRisk
    from lowland.core.types import Batch as Batch
    from lowland.opening import open as open
    from lowland.results.run import Run as Run

__version__ = "0.2.0"

_ROOMS = (
    "curvature",
    "data",
    "engine",
    "integrations",
    "landscape",
    "losses",
    "models",
    "optim",
    "report",
    "results",
    "robustness",
    "study",
    "testing",
    "training",
    "viz",
    "workflows",
)
_OBJECTS = {
    "EmpiricalRisk": "lowland.core.risk",
    "Batch": "lowland.core.types",
    "Run": "lowland.results.run",
    "open": "lowland.opening",
}

__all__ = ["__version__", *_OBJECTS, *_ROOMS]


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(f"lowland.{name}")
    if name in _OBJECTS:
        return getattr(importlib.import_module(_OBJECTS[name]), name)
    raise AttributeError(f"module 'lowland' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
