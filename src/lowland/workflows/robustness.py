"""The command that fills the robustness card of a run or a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowland.core.errors import InputError, check_positive, require
from lowland.core.names import DATASETS, check_engine, check_known, check_modules
from lowland.core.settings import RiskSpec, RobustnessOptions
from lowland.workflows import measured
from lowland.workflows.checks import called_as, check_name
from lowland.workflows.specs import SubjectSpec

if TYPE_CHECKING:
    import xarray as xr

    from lowland.core.pace import OnEvent
    from lowland.core.risk import EmpiricalRisk
    from lowland.data import DataSplits
    from lowland.results import Run


def robustness(
    subject: SubjectSpec | str | PathLike[str],
    options: RobustnessOptions = RobustnessOptions(),
    *,
    other: str | PathLike[str] | None = None,
    other_weights: str | None = None,
    finetune_data: str | None = None,
    finetune_options: dict[str, Any] | None = None,
    name: str | None = None,
    risk: RiskSpec = RiskSpec(),
    engine: str = "serial",
    threads: int | None = None,
    on_event: OnEvent | None = None,
    progress: bool = False,
) -> tuple[xr.Dataset, Path]:
    """Measure what rounding, noise, a fine-tune and merging do to the weights of a run, beside what curvature predicts.

    Args:
        subject: Whose weights; a run, or its folder.
        options: What is measured.
        other: Folder of another run, or another checkpoint of the model, to merge with; none merges nothing.
        other_weights: Which weights of the other run: best, last, initial or the step of a snapshot; none takes those
            that risk.weights names.
        finetune_data: A known name, or module:callable, of other data to fine-tune on and back; none leaves it out.
        finetune_options: Keyword arguments of that data set.
        name: Name of the card; it is written to FOLDER/robustness/NAME.zarr, and an interrupted one goes on. None calls
            it card, and adds which weights where they are others.
        risk: On which data.
        engine: Who computes the random directions: serial, processes:N, ray or ray://HOST:PORT.
        threads: Threads of torch (threads); none leaves torch's own number.
        on_event: Receives the progress.
        progress: Show a bar, in a terminal or a notebook.

    Returns:
        The card, and where it is stored.

    Raises:
        InputError: If an argument breaks a rule; nothing is written.

    Example:
        >>> robustness("runs/none")
        Traceback (most recent call last):
        lowland.core.errors.InputError: `run` must be the folder of a run (got 'runs/none'); make one with `lowland fit`
    """
    record = measured.record_of(robustness, locals())
    other = None if other is None else fspath(other)
    spec = SubjectSpec.of(subject)
    _check_call(name, engine, threads)
    _check_parts(options.parts or (), other, finetune_data)
    _check_other(spec, other, other_weights)
    place = measured.opened(spec, risk.weights)
    if other and spec.run is not None:
        measured.check_other("other", other, other_weights or risk.weights, "other_weights")
    path = measured.own_place(place, place.card_path, "card", name, risk.weights, robustness, record)
    from lowland.robustness.card import card, finished

    found = measured.stored_result(path, robustness, record)
    if found is not None and finished(found):
        return found, path
    with measured.threads_of_torch(threads), called_as({"second": "other", "finetune": "finetune_data"}):
        own = dict(place.risks([risk.split], risk))[risk.split]
        second = None if other is None else place.source.other(other, other_weights or risk.weights)
        step = {"step": int(risk.weights)} if risk.weights.isdigit() else {}
        made = card(
            own,
            options,
            finetune=_other_risk(own, finetune_data, finetune_options, risk),
            second=second,
            data=_pixels(place),
            engine=engine,
            store=path,
            attrs={"spec": record, "split": place.source.called(risk.split), **step},
            on_event=on_event,
            progress=progress,
        )
    return made, path


def _check_call(name: str | None, engine: str, threads: int | None) -> None:
    check_positive(threads=threads)
    check_engine(engine)
    if name is not None:
        check_name(name)


def _check_other(spec: SubjectSpec, other: str | None, other_weights: str | None) -> None:
    """Refuse what cannot be merged with."""
    if other is not None and spec.run is None and not Path(other).exists():
        raise InputError("other", "must be another checkpoint of the model", other)
    runs = other is not None and spec.run is not None
    require(runs or other_weights is None, "other_weights", "needs another run", other_weights, "give --other")


def _check_parts(parts: Sequence[str], other: str | None, finetune_data: str | None) -> None:
    """Refuse parts that lack what they need, and data that are not known."""
    require("forgetting" not in parts or finetune_data, "parts", "needs --finetune_data for forgetting", "forgetting")
    require("merging" not in parts or other, "parts", "needs --other for merging", "merging")
    if finetune_data is not None:
        check_known("finetune_data", finetune_data, DATASETS)
        check_modules({"finetune_data": finetune_data})


def _pixels(place: Run) -> DataSplits | None:
    """Return the data where attacks and noise on inputs know what to do with them."""
    from lowland.data import DataSplits, TensorData

    found = place.data()
    if not isinstance(found, DataSplits) or not isinstance(found.test, TensorData):
        return None
    target = found.test.target
    return found if target.ndim == 1 and not target.is_floating_point() and len(found.shape) == 3 else None


def _other_risk(
    own: EmpiricalRisk, data: str | None, options: dict[str, Any] | None, risk: RiskSpec
) -> EmpiricalRisk | None:
    if data is None:
        return None
    from lowland.workflows.sources import ExternalModel

    source = ExternalModel(own.model, data, loss=own.loss, data_options=options)
    found: EmpiricalRisk = source.risks([risk.split], risk, model=own.model)[risk.split]
    return found
