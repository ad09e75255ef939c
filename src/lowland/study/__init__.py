"""Studies: methods x seeds trained alike, surveyed on one scale, and compared by a rule that was declared before.

Whole studies (`run_study`, `recommend`, `demo`), and the parts that a study of one's own is made of: a run's numbers
and cost, the search for settings, equal cost, equal train loss, paired differences with one of four answers, and
association.
"""

from lowland.study.association import Association, association
from lowland.study.compare import compare_methods, write_report
from lowland.study.demo import DemoResult, demo
from lowland.study.endpoints import Cost, cost_of, equal_cost_epochs, read_endpoint, read_reach
from lowland.study.instrument import Check, Instrument, judged, largest_spread, measurable, planted_power, power
from lowland.study.recommend import Recommendation, recommend
from lowland.study.run import Study, run_study
from lowland.study.search import Trial, best_trial, grid_settings, withhold_test
from lowland.study.statistics import Answer, Effect, answer, equivalent, guarded, noninferior, paired_effect, retention
from lowland.workflows.changes import apply_changes

__all__ = ["DemoResult", "demo", "Study", "run_study", "compare_methods", "write_report"]
__all__ += ["Recommendation", "recommend", "apply_changes", "Trial", "grid_settings", "best_trial", "withhold_test"]
__all__ += ["Cost", "cost_of", "equal_cost_epochs", "read_endpoint", "read_reach"]
__all__ += ["Effect", "paired_effect", "Answer", "answer", "noninferior", "equivalent", "retention", "guarded"]
__all__ += ["Instrument", "Check", "planted_power", "power", "largest_spread", "measurable", "judged"]
__all__ += ["Association", "association"]
