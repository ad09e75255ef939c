"""Studies: methods x seeds trained alike, surveyed on one scale, and compared by a rule that was declared before.

Whole studies (`run_study`, `recommend`, `demo`), and the parts that a study of one's own is made of: a run's numbers
and cost, the search for settings, equal cost, equal train loss, paired differences with one of three answers, and
association.
"""

from lowland.results.matched import LOSS_RATIO, comparable, matched_steps
from lowland.study.association import Association, association
from lowland.study.compare import compare_methods, write_report
from lowland.study.demo import DemoResult, demo
from lowland.study.endpoints import Cost, cost_of, equal_cost_epochs, read_endpoint
from lowland.study.plan import apply_changes
from lowland.study.recommend import Recommendation, recommend
from lowland.study.run import Study, run_study
from lowland.study.search import Trial, best_trial, grid_settings, withhold_test
from lowland.study.statistics import Answer, Effect, answer, equivalent, noninferior, paired_effect, retention

__all__ = [
    "DemoResult",
    "demo",
    "Study",
    "run_study",
    "compare_methods",
    "write_report",
    "Recommendation",
    "recommend",
    "apply_changes",
    "Trial",
    "grid_settings",
    "best_trial",
    "withhold_test",
    "Cost",
    "cost_of",
    "equal_cost_epochs",
    "read_endpoint",
    "LOSS_RATIO",
    "comparable",
    "matched_steps",
    "Effect",
    "paired_effect",
    "Answer",
    "answer",
    "noninferior",
    "equivalent",
    "retention",
    "Association",
    "association",
]
