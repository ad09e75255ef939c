"""The command that merges saved checkpoints."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lowland.core.errors import InputError, require

if TYPE_CHECKING:
    from torch import Tensor

    from lowland.results import Run


def merge(
    checkpoints: list[str],
    *,
    decay: Literal["1-sqrt", "linear", "cosine"] = "1-sqrt",
    floor: float = 0.0,
    last: int | None = None,
    output: str | None = None,
) -> tuple[dict[str, Any], Path]:
    """Merge checkpoints of a constant learning rate with the weights that stand for a decay of it.

    Of a run, snapshots are merged; batch-norm statistics are made anew on the training part, and the loss of the
    validation part is measured at the merged weights and at the newest snapshot's.

    Args:
        checkpoints: The folder of a run with snapshots, or files of one model, oldest first.
        decay: 1-sqrt (the oldest weighs most), linear (a plain mean) or cosine (the middle weighs most).
        floor: Where the decay ends (fraction of the rate).
        last: How many of the newest are merged (checkpoints); none takes all but the start of a run.
        output: The safetensors file that is written; none takes merged.safetensors in the run's folder, or here.

    Returns:
        What was merged with which weights, and losses where there are data; and the file.

    Raises:
        InputError: If there are fewer than two, or the file exists.

    Example:
        >>> merge(["a.safetensors"])
        Traceback (most recent call last):
        lowland.core.errors.InputError: `checkpoints` must be a run with snapshots, or at least two files (got 1)
    """
    require(checkpoints, "checkpoints", "must be given", advice="the folder of a run, or files, oldest first")
    require(0 <= floor <= 1, "floor", "must lie in [0, 1]", floor)
    run = _run_of(checkpoints)
    found: list[Any] = checkpoints if run is None else _steps(run)
    if last is not None and not 2 <= last <= len(found):
        raise InputError("last", f"must be at least 2, and at most the {len(found)} there are", last)
    chosen = found if last is None else found[-last:]
    path = Path(output or (run.folder / "merged.safetensors" if run else "merged.safetensors"))
    new = path.suffix == ".safetensors" and not path.exists()
    require(new, "output", "must be a new file *.safetensors", str(path))
    return _merged(run, chosen, decay, floor, path), path


def _run_of(checkpoints: list[str]) -> Run | None:
    from lowland.workflows.measured import open_run

    if len(checkpoints) == 1 and Path(checkpoints[0]).is_dir():
        return open_run(checkpoints[0])
    count = len(checkpoints)
    require(count >= 2, "checkpoints", "must be a run with snapshots, or at least two files", count)
    for name in checkpoints:
        require(Path(name).exists(), "checkpoints", "must exist", name)
    return None


def _steps(run: Run) -> list[int]:
    steps = [] if run.snapshots is None else [step for step in run.snapshots.steps if step]
    require(len(steps) >= 2, "checkpoints", "must be a run with two snapshots at least", run.place)
    if len({after - before for before, after in itertools.pairwise(steps)}) > 1:
        raise InputError("checkpoints", "must be equally far apart", steps, "name files instead")
    return steps


def _merged(run: Run | None, chosen: list[Any], decay: str, floor: float, path: Path) -> dict[str, Any]:
    from lowland.optim import merge as weighted_sum
    from lowland.optim import merge_weights
    from lowland.training import read_weights
    from lowland.training.checkpoint import to_safetensors

    weights = merge_weights(len(chosen), decay, floor=floor)

    def states() -> Iterator[dict[str, Tensor]]:
        for one in chosen:
            yield read_weights(one) if run is None else run.model(one).state_dict()

    state = weighted_sum(states(), weights)
    result: dict[str, Any] = {"merged": [str(one) for one in chosen], "weights": weights, "decay": decay}
    if run is not None:
        state, losses = _renewed(run, state, chosen[-1])
        result |= losses
    from lowland.results.files import write_atomically

    write_atomically(path, to_safetensors(state))
    return result


def _renewed(run: Run, state: dict[str, Tensor], newest: int) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Renew the statistics that go with merged weights, and measure both."""
    from lowland.core.contexts import has_running_statistics, recalibrate

    model = run.model(newest)
    before = run.risk("validation", model=model).evaluate()["loss"].value
    model.load_state_dict(state)
    if has_running_statistics(model):
        recalibrate(model, run.risk("train", model=model).batches())
    after = run.risk("validation", model=model).evaluate()["loss"].value
    return dict(model.state_dict()), {"validation_loss": after, "validation_loss_newest": before}
