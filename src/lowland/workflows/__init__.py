"""One typed, versioned spec per command, for YAML and flags alike, and the one place where names become objects."""

from lowland.workflows.parse import parse, to_yaml
from lowland.workflows.recipe import Recipe, read_recipe, recipe_names
from lowland.workflows.specs import DataSpec, DemoSpec, FitSpec, LossSpec, ModelSpec, OptimizerSpec, ScheduleSpec
from lowland.workflows.study import ClaimsSpec, RecommendSpec, SearchSpec, StudySpec, SurveySpec
from lowland.workflows.surveys import (
    CurvatureSpec,
    FigureSpec,
    LineSpec,
    ReportSpec,
    RiskSpec,
    SurfaceSpec,
    TrajectorySpec,
)

__all__ = [
    "parse",
    "to_yaml",
    "Recipe",
    "read_recipe",
    "recipe_names",
    "FitSpec",
    "SurfaceSpec",
    "LineSpec",
    "TrajectorySpec",
    "CurvatureSpec",
    "ReportSpec",
    "FigureSpec",
    "DemoSpec",
    "ModelSpec",
    "DataSpec",
    "OptimizerSpec",
    "LossSpec",
    "ScheduleSpec",
    "RiskSpec",
    "StudySpec",
    "SearchSpec",
    "SurveySpec",
    "RecommendSpec",
    "ClaimsSpec",
]
