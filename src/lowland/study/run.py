"""The study, top to bottom: check, search, train at equal epochs and at equal compute, survey, compare."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from lowland.core.contexts import forked_rng
from lowland.core.errors import InputError, require
from lowland.core.pace import Labels, labels
from lowland.core.per_sample import accuracy
from lowland.core.types import as_batch, forward
from lowland.data import DataSplits, TensorData
from lowland.engine import OnEvent, select
from lowland.losses import TrainingLoss
from lowland.losses.schedule import ActiveEpochs
from lowland.optim import LateSAM
from lowland.results.files import only_writer, write_atomically
from lowland.study.endpoints import check_endpoint, cost_of, equal_cost_epochs, read_endpoint
from lowland.study.instrument import power_of
from lowland.study.plan import Job, jobs
from lowland.study.search import Trial, best_trial, search, settings_of, trial_jobs
from lowland.study.work import Failures, OnRun, train
from lowland.training.evaluation import plain_loss
from lowland.training.setup import check_lengths
from lowland.workflows import FitSpec, SurveyOptions, curvature, surface, to_yaml
from lowland.workflows.build import build_data, build_loss, build_model, build_optimizer, build_schedule
from lowland.workflows.changes import check_changes, run_spec, variants
from lowland.workflows.checks import called_as
from lowland.workflows.parse import from_yaml
from lowland.workflows.study import Changes, StudySpec

Progress = Labels
"""Label -> receiver of events."""


@dataclass
class Study:
    """A study that has run.

    Args:
        spec: The study.
        jobs: Its runs by budget, ``"epochs"`` and ``"compute"``; the dearest method has one set of runs for both.
        settings: (part, method) -> what the search chose.
        trials: (part, method) -> trials of the search.
        failures: Runs that failed.
    """

    spec: StudySpec
    failures: Failures
    jobs: dict[str, list[Job]] = field(default_factory=dict)
    settings: dict[tuple[str, str], Changes] = field(default_factory=dict)
    trials: dict[tuple[str, str], list[Trial]] = field(default_factory=dict)


def run_study(
    spec: StudySpec,
    *,
    progress: Progress | bool | None = None,
    on_run: OnRun | None = None,
    on_note: Callable[[str], None] | None = None,
) -> Study:
    """Run a study, or go on with one; what is finished is not done again.

    Args:
        spec: The study.
        progress: True shows bars, in a terminal or a notebook; or what gives a receiver of events for each label.
        on_run: Called after each run of the comparison.
        on_note: Called with what the study can see, line by line, before anything is trained.

    Returns:
        The study, with every run either finished or kept as failed.
    """
    notes = check_study(spec)
    folder = _open_folder(spec)
    tell = on_note or (lambda text: None)
    for note in notes:
        tell(note)
    with only_writer(folder), labels(progress) as told:
        study = Study(spec, Failures(folder))
        label = told or (lambda text: lambda event: None)
        _search(study, label)
        study.jobs["epochs"] = list(jobs(spec, "epochs", study.settings))
        train(study.jobs["epochs"], study.failures, engine=spec.engine, on_event=label("equal epochs"), on_run=on_run)
        if "compute" in spec.budgets:
            _equal_compute(study, label, on_run)
        _survey(study, label)
    return study


def check_study(spec: StudySpec) -> list[str]:
    """Check everything that can be checked before anything is trained, and say what the study will be able to see."""
    # Every method is built on every part's data and measured on one batch, in a network that is thrown away.
    check_changes(spec)
    check_endpoint(spec.endpoint)
    select(spec.engine)
    notes = [power_of(spec)]
    for variant in variants(spec):
        splits = build_data(run_spec(spec, variant, spec.reference(), {}).data)
        for method in spec.methods:
            found = run_spec(spec, variant, method, {})
            where = f"methods.{method}" + (f" on {variant}" if variant else "")
            with called_as({"endpoint": "endpoint"}, f"{where}: "):
                share = _rehearse(found, splits, spec.endpoint)
            notes += _reach_of(spec, " on ".join(filter(None, (method, variant))), share)
        notes += _resolution_of(spec, variant, splits)
    if spec.search.trials and spec.search.sampler == "grid":
        for method in spec.methods:
            settings_of(spec, method)
    return notes


def _reach_of(spec: StudySpec, name: str, share: float) -> list[str]:
    """Say from when on a method acts, where that is not the first step."""
    if share <= 0:
        return []
    text = f"Reach: {name} acts in the last {100 * (1 - share):.0f} % of training"
    if spec.base.select == "best" and not spec.endpoint.startswith("train_"):
        text += "; the epoch with the best validation score may come before: base.select: last measures the end"
    return [f"{text}."]


def _resolution_of(spec: StudySpec, variant: str, splits: DataSplits) -> list[str]:
    """Say where one sample of the part that decides is more than the smallest effect."""
    kind = spec.endpoint.partition("_")[0]
    part = {"test": splits.test, "validation": splits.validation}.get(kind)
    if part is None or not spec.endpoint.endswith(("accuracy", "error")) or not isinstance(part, TensorData):
        return []
    step, where = 1 / len(part), f" of {variant}" if variant else ""
    if step <= spec.smallest_effect:
        return []
    text = f"Resolution: the {kind} part{where} has {len(part)} samples, so that one is {step:.2g}"
    return [f"{text}, more than the smallest effect of {spec.smallest_effect:g}."]


def _rehearse(spec: FitSpec, splits: DataSplits, endpoint: str) -> float:
    """Take one batch through model and loss, without a step; return the share of the run before the method acts."""
    schedule = build_schedule(spec.schedule)
    model = build_model(spec.model, splits, seed=spec.seed)
    optimizer, loss = build_optimizer(spec.optimizer, model), build_loss(spec.loss, model, splits)
    resident = isinstance(splits.train, TensorData)
    size = min(spec.batch_size, len(splits.train)) if resident else spec.batch_size
    batch = as_batch(next(iter(splits.train.batches(size) if resident else splits.train)))
    if isinstance(loss, TrainingLoss):
        if loss.needs_index and batch.index is None:
            rule, advice = "needs sample ids, and the data have none", "wrap the data set in lowland.data.Indexed"
            raise InputError("loss.method", rule, spec.loss.method, advice)
        steps = math.ceil(len(splits.train) / size) if resident else len(splits.train)
        loss.prepare(
            model=model, epochs=spec.epochs, steps_per_epoch=steps, samples=splits.train.index if resident else None
        )
        loss.epoch = 0
    with forked_rng(0):
        output = forward(model, batch)
        value = loss(output, batch if isinstance(loss, TrainingLoss) else batch.target)
    if not torch.isfinite(torch.as_tensor(value)).all():
        raise InputError("loss", "must be finite at the initial weights", float(value))
    if endpoint.endswith(("accuracy", "error")) and accuracy(output, batch.target, plain_loss(loss)) is None:
        raise InputError(
            "endpoint", "needs data with classes", endpoint, "a loss serves: test_loss, validation_loss ..."
        )
    optimizer.zero_grad()
    whole = spec.epochs * (math.ceil(len(splits.train) / size) if resident else len(splits.train))
    check_lengths(optimizer, schedule, whole)
    return _share_before(optimizer, loss, spec.epochs, whole)


def _share_before(optimizer: Any, loss: Any, epochs: int, steps: int) -> float:
    """Return the share of a run before its optimizer's or loss's method acts; 0 for methods without a beginning."""
    begins: list[float] = []
    method = getattr(optimizer, "ascent_method", None)
    if isinstance(optimizer, LateSAM):
        begins.append(1 - float(optimizer.share))
    elif method is not None:
        begins.append(optimizer.options.start / steps)
    active = getattr(loss, "active", None)
    if isinstance(active, ActiveEpochs):
        begins.append(active.first(epochs) / epochs)
    return min(begins, default=0.0)


def _open_folder(spec: StudySpec) -> Path:
    """Return the study's folder; refuse one that holds another study."""
    folder = Path(spec.folder)
    file = folder / "study.yaml"
    if file.is_file():
        known = from_yaml(StudySpec, file)
        known.folder, known.engine = spec.folder, spec.engine  # where it lies and who computes change no number
        require(known == spec, "folder", "holds another study", str(folder), "choose another --folder")
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError("folder", "must be new, empty or the folder of this study", str(folder))
    write_atomically(file, to_yaml(spec).encode())
    return folder


def _search(study: Study, label: Progress) -> None:
    spec = study.spec
    if not spec.search.trials:
        return
    for variant in variants(spec):
        for method in spec.methods:
            text = "search: " + " on ".join(part for part in (method, variant) if part)
            tried = _trials(study, variant, method, label(text))
            study.trials[variant, method] = tried
            study.settings[variant, method] = best_trial(tried, _first_failure(study, variant, method)).settings


def _first_failure(study: Study, variant: str, method: str) -> str:
    prefix = "/".join(part for part in ("trials", variant, method) if part)
    return next((failure.error for key, failure in study.failures.items() if key.startswith(f"{prefix}/")), "")


def _trials(study: Study, variant: str, method: str, on_event: OnEvent) -> list[Trial]:
    spec = study.spec

    def run(numbered: Mapping[int, Changes]) -> dict[int, float]:
        made = {n: trial_jobs(spec, variant, method, n, settings) for n, settings in numbered.items()}
        every = [job for found in made.values() for job in found]
        train(every, study.failures, engine=spec.engine, on_event=on_event)
        return {n: _validation(found, study.failures) for n, found in made.items()}

    return search(spec, method, run)


def _validation(found: list[Job], failures: Failures) -> float:
    """Return the mean validation accuracy (or minus the loss) of a trial; NaN where a run failed."""
    values = []
    for job in found:
        if failures[job.key] is not None:
            return math.nan
        accuracy = read_endpoint(job.spec.folder, "validation_accuracy")
        loss = read_endpoint(job.spec.folder, "validation_loss")
        values.append(accuracy if math.isfinite(accuracy) else -loss)
    return sum(values) / len(values)


def _equal_compute(study: Study, label: Progress, on_run: OnRun | None) -> None:
    """Give every method the passes of the dearest one: longer runs, each with its schedule over its whole length."""
    spec, lengths = study.spec, {}
    for variant in variants(spec):
        costs = {method: _cost_per_epoch(study, variant, method) for method in spec.methods}
        now = {method: run_spec(spec, variant, method, {}).epochs for method in spec.methods}
        for method, epochs in equal_cost_epochs(now, costs).items():
            if epochs > now[method]:
                lengths[variant, method] = epochs
    longer = list(jobs(spec, "compute", study.settings, epochs=lengths))
    train(longer, study.failures, engine=spec.engine, on_event=label("equal compute"), on_run=on_run)
    kept = [job for job in study.jobs["epochs"] if (job.variant, job.method) not in lengths]
    study.jobs["compute"] = longer + kept


def _cost_per_epoch(study: Study, variant: str, method: str) -> float:
    found = [job for job in study.jobs["epochs"] if (job.variant, job.method) == (variant, method)]
    costs = [cost_of(job.spec.folder) for job in found if study.failures[job.key] is None]
    return sum(cost.passes / cost.epochs for cost in costs) / len(costs) if costs else math.nan


def _survey(study: Study, label: Progress) -> None:
    spec, survey = study.spec, study.spec.survey
    for job in study.jobs["epochs"]:
        if study.failures[job.key] is not None:
            continue
        name = " ".join(part for part in (job.variant, job.method, f"seed {job.seed}") if part)
        if job.seed in spec.survey_seeds():
            told = label(f"curvature of {name}")
            curvature(job.spec.folder, name="hessian", risk=survey.risk, threads=job.spec.threads, on_event=told)
        if survey.surface and job.seed == spec.first_seed:
            how, points = SurveyOptions(risk=survey.risk, threads=job.spec.threads), (survey.points, survey.points)
            told = label(f"surface of {name}")
            surface(job.spec.folder, how, points=points, extent=survey.extent, on_event=told)
