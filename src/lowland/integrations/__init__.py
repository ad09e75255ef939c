"""Bridges to the tools that people already use; each third party has a file, imported when it is asked for."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from lowland.integrations.loggers import LogTo, line_figure
from lowland.integrations.surveys import SharpnessLog, SurfaceAtEnd

if TYPE_CHECKING:
    from lowland.integrations.accelerate import AcceleratePasses
    from lowland.integrations.lightning import LightningCallback, LightningMixin
    from lowland.integrations.transformers import TrainerMixin

_OPTIONAL = {
    "LightningCallback": "lightning",
    "LightningMixin": "lightning",
    "TrainerMixin": "transformers",
    "AcceleratePasses": "accelerate",
}

__all__ = ["LightningCallback", "LightningMixin", "TrainerMixin", "AcceleratePasses"]
__all__ += ["SharpnessLog", "SurfaceAtEnd", "LogTo", "line_figure"]


def __getattr__(name: str) -> Any:
    if name in _OPTIONAL:
        return getattr(importlib.import_module(f"lowland.integrations.{_OPTIONAL[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
