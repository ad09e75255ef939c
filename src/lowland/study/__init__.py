"""Studies: methods x seeds trained alike, surveyed on one scale, and compared by a rule that was declared before."""

from lowland.study.compare import compare_methods, write_report
from lowland.study.demo import DemoResult, demo
from lowland.study.recommend import Recommendation, recommend
from lowland.study.run import Study, run_study

__all__ = [
    "DemoResult",
    "demo",
    "Study",
    "run_study",
    "compare_methods",
    "write_report",
    "Recommendation",
    "recommend",
]
