"""The command that trains: one network into a run folder."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from lowland.core.errors import InputError, require
from lowland.core.names import SPEC, check_modules, flattened
from lowland.workflows.measured import open_run, threads_of_torch
from lowland.workflows.parse import from_yaml, to_yaml
from lowland.workflows.specs import FitSpec

if TYPE_CHECKING:
    from lowland.core.pace import OnEvent
    from lowland.results import Run
    from lowland.training import Hook

_SAME: Final = (
    *("epochs", "batch_size", "micro_batches", "seed", "clip", "select", "checkpoint_every_steps"),
    *("precision", "accelerator", "devices"),
)
"""Fields of a spec that are arguments of `lowland.training.fit`."""


def fit(spec: FitSpec, *, on_event: OnEvent | None = None, progress: bool = False) -> Run:
    """Train one network, and write a run folder that every other command reads.

    An interrupted run goes on, a finished one is left as it is. A finished one goes on when `epochs` has grown and
    nothing that was done depends on the length of the run: with a constant or stepped learning rate, to the same bits
    as if it had been as long from the beginning. A cosine is laid over the whole length, so that it is refused.

    Args:
        spec: The run.
        on_event: Receives the progress.
        progress: Show a bar, in a terminal or a notebook.

    Returns:
        The run.

    Raises:
        InputError: If something does not fit, or the folder holds another run; nothing is written.

    Example:
        >>> from lowland.workflows import DataSpec
        >>> fit(FitSpec(folder="runs/none", data=DataSpec(name="digit")))
        Traceback (most recent call last):
        lowland.core.errors.InputError: `data.name` must be a known name (got 'digit'); did you mean 'digits'? ...
    """
    grown = _check_folder(spec)
    if grown is None and (Path(spec.folder) / SPEC).is_file():
        from lowland.results.folders import has_result

        if has_result(Path(spec.folder)):
            return open_run(spec.folder)
    check_modules({f"{part}.name": getattr(spec, part).name for part in ("model", "data", "optimizer", "loss")})
    from lowland import training
    from lowland.workflows import build

    splits = build.build_data(spec.data)  # everything is built before anything is written: bad input leaves no trace
    augment = build.build_augment(spec.augment, splits, spec.loss)
    model = build.build_model(spec.model, splits, seed=spec.seed)
    build.check_model(model, splits, build.build_criterion(spec.loss))
    optimizer = build.build_optimizer(spec.optimizer, model)
    loss, schedule = build.build_loss(spec.loss, model, splits), build.build_schedule(spec.schedule)
    if grown is not None:
        _check_grown(spec, grown, training.why_fixed(schedule, loss, grown, spec.epochs))
    hooks: list[Hook] = []
    if spec.snapshots_every_epochs is not None:
        hooks.append(training.Snapshots(every_epochs=spec.snapshots_every_epochs, dtype=spec.snapshot_dtype))
    if spec.curvature_share is not None:
        curve = training.CurvatureCurve(share=spec.curvature_share)
        count: int = len(getattr(splits.train, "dataset", splits.train))
        try:
            curve.interval(optimizer, count, math.ceil(count / spec.batch_size), spec.epochs)  # or say why not
        except InputError as error:
            raise InputError("curvature_share", error.rule, error.got, error.advice) from None
        hooks.append(curve)
    if spec.critical_every_steps is not None:
        hooks.append(training.CriticalCurve(every_steps=spec.critical_every_steps))
    hooks.append(training.Hook())  # there since 0.1.0: a run goes on only with as many hooks as it began with
    run = create_run(spec, longer=grown is not None)
    place = run.folder.absolute()
    with threads_of_torch(spec.threads):
        same = {name: getattr(spec, name) for name in _SAME}
        made: dict[str, Any] = {"schedule": schedule, "augment": augment, "folder": place, "hooks": hooks}
        made |= {"on_event": on_event, "progress": progress}
        training.fit(model, optimizer, loss, splits, **same, **made)
    moved = run.folder.absolute() != place  # the process: what it reports to may have changed the folder it is in
    return open_run(place if moved else run.folder)  # anew: it has its result now


def create_run(spec: FitSpec, *, longer: bool = False) -> Run:
    """Make the folder of a run, or open it if it holds the same run; a shorter one only if it may become longer."""
    from lowland.results.files import write_atomically
    from lowland.results.folders import open_run_folder

    file = Path(spec.folder) / SPEC
    there, text = file.is_file(), to_yaml(spec)
    if there:
        run = open_run(spec.folder)
        # parsing takes a tenth of a second
        before = None if file.read_text(encoding="utf-8") == text else _check_folder(spec)
        if before is None:
            return run
        require(longer, "folder", f"holds a run of another spec: epochs is {before} there", spec.folder)
        run.result_path.unlink(missing_ok=True)  # it is not finished any more
    open_run_folder(file.parent, new=not there)
    write_atomically(file, text.encode())  # torchrun starts several processes at once, which all come here
    return open_run(spec.folder)


def _check_folder(spec: FitSpec) -> int | None:
    """Check that a run can have its folder; return the epochs that it had there where it has more now."""
    path = Path(spec.folder)
    if not (path / SPEC).is_file():
        if path.is_dir() and any(SPEC not in entry.name for entry in path.iterdir()):
            raise InputError("folder", "must be new, empty or the folder of this run", str(path))
        return None
    before = from_yaml(FitSpec, path / SPEC)
    old, new = flattened(asdict(before)), flattened(asdict(replace(spec, folder=before.folder)))
    differ = {name: (old.get(name), new.get(name)) for name in {**old, **new} if old.get(name) != new.get(name)}
    if not differ:  # a folder that was moved is still the same run
        return None
    if list(differ) == ["epochs"] and spec.epochs > before.epochs:
        return before.epochs
    shown = ", ".join(f"{name} is {there!r} there and {here!r} here" for name, (there, here) in differ.items())
    advice = "choose another --folder, or give the same values (of a run in its folder only --epochs may grow)"
    raise InputError("folder", f"holds a run of another spec: {shown}", str(path), advice)


def _check_grown(spec: FitSpec, before: int, why: str) -> None:
    if spec.curvature_share is not None:
        why = "the curve of the curvature is laid over the whole length of the run"
    if why:
        advice = "choose another --folder; runs with --schedule.kind constant or step and a plain loss can grow"
        raise InputError("epochs", f"must stay {before} in this folder, since {why}", spec.epochs, advice)


def leave_processes() -> None:
    """End the communication between the processes of a run; else gloo's threads can abort Python when it exits."""
    import torch

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
