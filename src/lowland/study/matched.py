"""Where two paths have the same train loss: curvature is compared there, since it vanishes as a network memorizes."""

from __future__ import annotations

from collections.abc import Sequence

from lowland.core.errors import InputError
from lowland.core.matched import common_loss, nearest
from lowland.results import SnapshotReader
from lowland.workflows import RiskSpec
from lowland.workflows.folder import RunFolder

__all__ = ["losses_along_path", "matched_steps"]


def losses_along_path(run: RunFolder, risk: RiskSpec) -> dict[int, float]:
    """Measure the train loss of every snapshot of a run."""
    measured = run.risk(risk)
    state = measured.model.state_dict()
    losses = {}
    for step in SnapshotReader(run.paths.snapshots).steps:
        measured.model.load_state_dict({**state, **run.snapshot(step)})
        losses[step] = measured.evaluate()["loss"].value
    return losses


def matched_steps(runs: Sequence[RunFolder], risk: RiskSpec) -> list[int]:
    """Find the step of each run at which its train loss is nearest (in ratio) to a common one."""
    # The common loss is the largest that the runs have at the weights of ``risk``, so that every path has
    # passed it.
    ends = [run.risk(risk).evaluate()["loss"].value for run in runs]
    target = common_loss(ends)
    if target is None:
        raise InputError("runs", "must have finite and positive train losses", ends)
    return [nearest(losses_along_path(run, risk), target) for run in runs]
