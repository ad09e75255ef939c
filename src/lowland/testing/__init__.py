"""The conformance suite: what a sharpness-aware optimizer, a landscape tool and a curvature tool must get right.

An adapter of some thirty lines tells the suite how a tool is driven (`OptimizerAdapter`, `LandscapeAdapter`,
`CurvatureAdapter`). ``pytest --conformance FILE`` checks every adapter in a file; `check` does it from Python. What a
tool breaks is shown by a script that stands alone (`reproduce`), and stored as JSON (`examine`, `document`).
Nothing is imported before it is asked for, so that pytest may load the plugin at no cost.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lowland.testing.adapters import CurvatureAdapter, LandscapeAdapter, OptimizerAdapter, Surface
    from lowland.testing.own import own_adapters
    from lowland.testing.reproduction import Reproduction, reproduce
    from lowland.testing.results import document, examine
    from lowland.testing.rulebook import Adapter, Breach, NotOffered, Outcome, Rule, check, demand, rules

# what an adapter says
__all__ = ["Adapter", "OptimizerAdapter", "LandscapeAdapter", "CurvatureAdapter", "Surface", "NotOffered"]
# what is asked of it
__all__ += ["rules", "Rule", "check", "Outcome", "Breach", "demand"]
# what is found
__all__ += ["reproduce", "Reproduction", "examine", "document"]
# our own
__all__ += ["own_adapters"]

_HOMES = {
    "adapters": ("OptimizerAdapter", "LandscapeAdapter", "CurvatureAdapter", "Surface"),
    "rulebook": ("Adapter", "NotOffered", "rules", "Rule", "check", "Outcome", "Breach", "demand"),
    "reproduction": ("Reproduction", "reproduce"),
    "results": ("document", "examine"),
    "own": ("own_adapters",),
}


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
