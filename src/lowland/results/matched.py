"""Which curvatures may be compared: at the end where train losses are close, else where the paths had equal losses.

Cross-entropy curvature vanishes as a network memorizes, so that the flatter of two networks may only be the one whose
train loss is lower. This is the one definition for measures, studies and reports; it imports no torch.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeVar

import numpy as np

from lowland.core.errors import InputError
from lowland.core.schema import check_dataset
from lowland.results.run import Run

if TYPE_CHECKING:
    import xarray as xr

LOSS_RATIO: Final = 1.5
"""Train losses that differ by more make curvatures incomparable."""

Place = TypeVar("Place")


def comparable(losses: Sequence[float | None]) -> bool:
    """Return whether train losses are close enough to compare curvatures."""
    known = [loss for loss in losses if loss is not None and math.isfinite(loss)]
    if len(known) < len(losses):
        return False
    return not known or (min(known) >= 0 and max(known) <= LOSS_RATIO * min(known))


def common_loss(ends: Sequence[float | None]) -> float | None:
    """Return the train loss to compare paths at: the lowest that every one of them has reached."""
    known = [loss for loss in ends if loss is not None and math.isfinite(loss) and loss > 0]
    return max(known) if known and len(known) == len(ends) else None


def nearest(losses: Mapping[Place, float], target: float) -> Place:
    """Return the place of a path at which its train loss is nearest in ratio to a common one."""

    def distance(place: Place) -> float:
        loss = losses[place]
        return abs(math.log(max(loss, 1e-300) / max(target, 1e-300))) if math.isfinite(loss) else math.inf

    return min(reversed(list(losses)), key=distance)


def within(loss: float, target: float) -> bool:
    """Return whether a train loss is near enough to a common one."""
    return loss > 0 and comparable([loss, target])


def losses_along_path(run: Run, risk: Callable[[Run], Any] = Run.risk) -> dict[int, float]:
    """Measure the loss of every snapshot of a run."""
    if run.snapshots is None:
        raise InputError("run", "must hold snapshots", run.place, "train it with --snapshots_every_epochs 1")
    measured = risk(run)
    losses = {}
    for step in run.snapshots.steps:
        run.source.load(measured.model, str(step))
        losses[step] = measured.evaluate()["loss"].value
    return losses


def matched_steps(runs: Sequence[Run], risk: Callable[[Run], Any] = Run.risk) -> list[int]:
    """Find the step of each run at which its train loss is nearest (in ratio) to a common one.

    The common loss is the largest that the runs have at the weights of ``risk``, so that every path has passed it.

    Args:
        runs: Runs with snapshots.
        risk: Makes the risk of a run; its weights are those at the end of the path. Default `Run.risk`.

    Returns:
        One step per run, for ``run.risk(weights=step)``.

    Raises:
        InputError: If a loss is not finite and positive, or a run has no snapshots.
    """
    ends = [risk(run).evaluate()["loss"].value for run in runs]
    target = common_loss(ends)
    if target is None:
        raise InputError("runs", "must have finite and positive train losses", ends)
    return [nearest(losses_along_path(run, risk), target) for run in runs]


def at_matched_loss(
    paths: Mapping[str, Sequence[xr.Dataset]], variable: str, *, losses: Sequence[float] | None = None
) -> dict[str, Any]:
    """Compare runs at the end and where their train losses were equal.

    Args:
        paths: For each run its curvature results along training, in order; each with ``train_loss``.
        variable: Scalar to compare, such as ``"lambda_max"``.
        losses: Train losses to compare at; default five from the range that all runs have passed through.

    Returns:
        ``end`` (run -> value), ``end_losses``, ``comparable_at_end`` (train losses within a factor 1.5), ``losses``,
        and ``matched`` (run -> values at those losses, interpolated linearly in the logarithm of the loss; NaN where a
        run was never there).

    Raises:
        InputError: If there are fewer than two runs or a run is empty.
    """
    if len(paths) < 2 or any(len(path) == 0 for path in paths.values()):
        sizes = {name: len(path) for name, path in paths.items()}
        raise InputError("paths", "must hold at least two runs, none of them empty", sizes)
    for result in itertools.chain(*paths.values()):
        check_dataset(result)
    curves = {
        name: (np.array([float(r["train_loss"]) for r in path]), np.array([float(r[variable]) for r in path]))
        for name, path in paths.items()
    }
    ends = {name: float(loss[-1]) for name, (loss, _) in curves.items()}
    if losses is None:
        low = max(float(loss.min()) for loss, _ in curves.values())
        high = min(float(loss.max()) for loss, _ in curves.values())
        losses = np.geomspace(high, low, 5).tolist() if 0 < low <= high else []
    return {
        "end": {name: float(values[-1]) for name, (_, values) in curves.items()},
        "end_losses": ends,
        "comparable_at_end": comparable(list(ends.values())),
        "losses": list(losses),
        "matched": {name: [_at(loss, values, where) for where in losses] for name, (loss, values) in curves.items()},
    }


def _at(losses: np.ndarray[Any, Any], values: np.ndarray[Any, Any], where: float) -> float:
    """Return the value where a falling loss last passed a level."""
    for k in range(len(losses) - 1, 0, -1):
        before, after = losses[k - 1], losses[k]
        if min(before, after) <= where <= max(before, after) and min(before, after) > 0:
            share = 0.0 if before == after else math.log(where / before) / math.log(after / before)
            return float(values[k - 1] + share * (values[k] - values[k - 1]))
    return float(values[-1]) if math.isclose(where, losses[-1], rel_tol=1e-9) else math.nan
