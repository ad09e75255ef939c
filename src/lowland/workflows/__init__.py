"""The commands as functions, what a file holds as typed specs, and the one place where names become objects.

What needs torch is imported when it is first touched (PEP 562), so that a spec is read, and refused, at once.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

from lowland.workflows.figures import figure
from lowland.workflows.fitting import fit
from lowland.workflows.parse import parse, to_yaml
from lowland.workflows.recipe import Recipe, read_recipe, recipe_names
from lowland.workflows.specs import (
    DataSpec,
    DemoSpec,
    FitSpec,
    LossSpec,
    ModelSpec,
    OptimizerSpec,
    RiskSpec,
    ScheduleSpec,
    SubjectSpec,
)
from lowland.workflows.study import Changes, RecommendSpec, SearchSpec, StudySpec, SurveySpec
from lowland.workflows.surveys import curvature, line, surface, trajectory

if TYPE_CHECKING:
    from lowland.workflows.build import build_criterion as build_criterion
    from lowland.workflows.build import build_data as build_data
    from lowland.workflows.build import build_loss as build_loss
    from lowland.workflows.build import build_model as build_model
    from lowland.workflows.build import build_optimizer as build_optimizer
    from lowland.workflows.build import build_schedule as build_schedule
    from lowland.workflows.sources import open_run as open_run

_WITH_TORCH: Final = {
    **{f"build_{part}": "build" for part in ("criterion", "data", "loss", "model", "optimizer", "schedule")},
    "open_run": "sources",
}
"""Name -> the module that has it."""

__all__ = [
    # commands
    "fit",
    "surface",
    "line",
    "trajectory",
    "curvature",
    "figure",
    # specs
    "parse",
    "to_yaml",
    "Recipe",
    "read_recipe",
    "recipe_names",
    "FitSpec",
    "ModelSpec",
    "DataSpec",
    "OptimizerSpec",
    "LossSpec",
    "ScheduleSpec",
    "SubjectSpec",
    "RiskSpec",
    "StudySpec",
    "SearchSpec",
    "SurveySpec",
    "RecommendSpec",
    "DemoSpec",
    "Changes",
    # objects
    "open_run",
    "build_criterion",
    "build_data",
    "build_loss",
    "build_model",
    "build_optimizer",
    "build_schedule",
]


def __getattr__(name: str) -> Any:
    if name in _WITH_TORCH:
        return getattr(importlib.import_module(f"lowland.workflows.{_WITH_TORCH[name]}"), name)
    raise AttributeError(f"module 'lowland.workflows' has no attribute {name!r}")
