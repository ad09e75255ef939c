"""Where two paths have the same train loss: curvature is compared there, since it vanishes as a network memorises."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lowland.spec import RiskSpec
from lowland.spec.folder import RunFolder
from lowland.store import SnapshotReader

__all__ = ["losses_along_path", "matched_steps"]


def losses_along_path(run: RunFolder, risk: RiskSpec) -> dict[int, float]:
    """Measure the train loss of every snapshot of a run.

    Args:
        run: The run; it must hold snapshots.
        risk: Data and batch-norm mode; its weights are ignored.

    Returns:
        Step -> loss.
    """
    measured = run.risk(risk)
    state = measured.model.state_dict()
    losses = {}
    for step in SnapshotReader(run.path / "snapshots").steps:
        measured.model.load_state_dict({**state, **run.snapshot(step)})
        losses[step] = measured.evaluate()["loss"].value
    return losses


def matched_steps(runs: Sequence[RunFolder], risk: RiskSpec) -> list[int]:
    """Find the step of each run at which its train loss is nearest (in ratio) to a common one.

    The common loss is the largest that the runs have at the weights of ``risk``, so that every path has passed it.

    Args:
        runs: The runs.
        risk: Weights, data and batch-norm mode.

    Returns:
        One step per run; the last one at which the path is nearest.
    """
    target = max(run.risk(risk).evaluate()["loss"].value for run in runs)
    steps = []
    for run in runs:
        losses = losses_along_path(run, risk)
        steps.append(min(losses, key=lambda step: (_ratio(losses[step], target), -step)))
    return steps


def _ratio(loss: float, target: float) -> float:
    return abs(math.log(max(loss, 1e-300) / max(target, 1e-300))) if math.isfinite(loss) else math.inf
