"""The commands as functions, what a file holds as typed specs, and the one place where names become objects.

What needs torch is imported when it is first touched (PEP 562), so that a spec is read, and refused, at once.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from lowland.core.settings import RiskSpec
from lowland.workflows.connecting import connect
from lowland.workflows.figures import figure
from lowland.workflows.filming import film
from lowland.workflows.fitting import fit
from lowland.workflows.inspecting import inspect
from lowland.workflows.measured import open_run
from lowland.workflows.merging import merge
from lowland.workflows.parse import parse, to_yaml
from lowland.workflows.recipe import Recipe, read_recipe, recipe_names
from lowland.workflows.robustness import robustness
from lowland.workflows.specs import (
    DataSpec,
    DemoSpec,
    FitSpec,
    LossSpec,
    ModelSpec,
    OptimizerSpec,
    ScheduleSpec,
    SubjectSpec,
    SurveyOptions,
)
from lowland.workflows.study import Changes, RecommendSpec, SearchSpec, StudySpec, SurveySpec
from lowland.workflows.surveys import curvature, line, surface, trajectory
from lowland.workflows.topology import topology

if TYPE_CHECKING:
    from lowland.workflows.build import build_criterion as build_criterion
    from lowland.workflows.build import build_data as build_data
    from lowland.workflows.build import build_loss as build_loss
    from lowland.workflows.build import build_model as build_model
    from lowland.workflows.build import build_optimizer as build_optimizer
    from lowland.workflows.build import build_schedule as build_schedule

# commands
__all__ = ["fit", "surface", "line", "connect", "trajectory", "film", "curvature", "robustness"]
__all__ += ["figure", "inspect", "topology", "merge"]
# specs
__all__ += ["parse", "to_yaml", "Recipe", "read_recipe", "recipe_names"]
__all__ += ["FitSpec", "ModelSpec", "DataSpec", "OptimizerSpec", "LossSpec"]
__all__ += ["ScheduleSpec", "SubjectSpec", "RiskSpec"]
__all__ += ["StudySpec", "SearchSpec", "SurveySpec", "SurveyOptions", "RecommendSpec", "DemoSpec", "Changes"]
# objects
__all__ += ["open_run", "build_criterion", "build_data", "build_loss", "build_model"]
__all__ += ["build_optimizer", "build_schedule"]


def __getattr__(name: str) -> Any:
    if name in __all__ and name.startswith("build_"):
        return getattr(importlib.import_module("lowland.workflows.build"), name)
    raise AttributeError(f"module 'lowland.workflows' has no attribute {name!r}")
