"""The commands as functions, what a file holds as typed specs, and the one place where names become objects."""

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
from lowland.workflows.study import ClaimsSpec, RecommendSpec, SearchSpec, StudySpec, SurveySpec
from lowland.workflows.surveys import curvature, line, surface, trajectory

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
    "ClaimsSpec",
]
