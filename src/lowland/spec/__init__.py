"""One typed, versioned spec per command, for YAML and flags alike, and the one place where names become objects."""

from lowland.spec.parse import parse, to_yaml
from lowland.spec.specs import (
    CurvatureSpec,
    DataSpec,
    DemoSpec,
    FitSpec,
    LossSpec,
    ModelSpec,
    OptimizerSpec,
    ReportSpec,
    RiskSpec,
    ScheduleSpec,
    SurfaceSpec,
    TrajectorySpec,
)
from lowland.spec.study import RecommendSpec, SearchSpec, StudySpec, SurveySpec

__all__ = [
    "parse",
    "to_yaml",
    "FitSpec",
    "SurfaceSpec",
    "TrajectorySpec",
    "CurvatureSpec",
    "ReportSpec",
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
]
